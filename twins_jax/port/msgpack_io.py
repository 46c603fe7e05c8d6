"""Reads files that `flax.serialization.to_bytes` wrote: arrays alone are decoded, and nothing in them is ever run.

The maps are walked without building anything, so a small file cannot claim much memory; Flax decodes one array a time.
"""

import itertools
import mmap
from collections.abc import Container, Iterator

import numpy as np

from twins_jax.errors import InputError, one_line
from twins_jax.port.convert import Tensors
from twins_jax.port.state_names import find_models, select

Bytes = bytes | mmap.mmap

MAX_ENTRIES = 20_000
MAX_NAME = 1000
"""Bounds on the entries and on a name's characters, far above those of any training state of ours."""

_CHUNKED = "__msgpack_chunked_array__"  # Flax's mark on the map of the parts of an array over 1 GiB
_ARRAY = 1  # Flax's type of extension for arrays


def is_msgpack(head: bytes) -> bool:
    """True if a file that begins with these bytes means to be a map with a text as its first key."""
    first = head[:1]
    key = {b"\xde": 3, b"\xdf": 5}.get(first, 1)
    is_map = first in (b"\xde", b"\xdf") or b"\x81" <= first <= b"\x8f"
    return is_map and _is_text(head, key)


def read_msgpack(path: str, *, ema: bool = False, prefix: str | None = None) -> tuple[Tensors, str]:
    """Reads the parameters of a model's state, or of a training state with one in it.

    Args:
        path: the file.
        ema: take the moving average of the parameters.
        prefix: the place of the model that is wanted, of several.

    Returns:
        path -> array as `twins_jax.port.state_names` finds them; and its note.

    Raises:
        InputError: the file is damaged or of another format, or the entries chosen are no arrays.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            entries = _entries(data)
        except Exception as error:  # what msgpack raises depends on the bytes
            raise InputError(f"{path}: not a readable msgpack file of flax.serialization: {one_line(error)}") from error
        chunked = dict.fromkeys(name.removesuffix(f"/{_CHUNKED}") for name in entries if name.endswith(f"/{_CHUNKED}"))
        names = [name for name in entries if not _is_chunk(name, chunked)] + list(chunked)
        if not find_models(names):  # of another library's names, or no model: to tell which, arrays are enough
            names = [name for name in names if name in chunked or _is_extension(data, entries[name].start)]
        chosen = select(names, path, ema=ema, prefix=prefix)
        tensors = {}
        for name, ours in chosen.paths.items():
            try:
                tensors[ours] = _join(data, name, entries) if name in chunked else _array(data, entries[name])
            except Exception as error:
                raise InputError(f"{path}: {name} is no readable array: {one_line(error)}") from error
    return tensors, chosen.note


def _entries(data: mmap.mmap) -> dict[str, slice]:
    """Finds all that is no map: name, with slashes -> place in the file."""
    import msgpack

    unpacker = msgpack.Unpacker(data, max_buffer_size=len(data))
    entries: dict[str, slice] = {}

    def walk(name: str) -> None:
        start = unpacker.tell()
        if len(name) > MAX_NAME or len(entries) == MAX_ENTRIES:
            raise ValueError(f"has a name of over {MAX_NAME} characters, or over {MAX_ENTRIES} entries")
        if not _is_map(data, start):
            unpacker.skip()
            if name in entries:
                raise ValueError(f"{name} stands in it twice")
            entries[name] = slice(start, unpacker.tell())
            return
        for _ in range(unpacker.read_map_header()):
            at = unpacker.tell()
            if not _is_text(data, at):
                raise ValueError(f"a key at byte {at} is no text")
            walk(f"{name}/{unpacker.unpack()}" if name else unpacker.unpack())

    walk("")
    if unpacker.tell() != len(data):
        raise ValueError(f"{len(data) - unpacker.tell()} bytes follow its end")
    return entries


def _array(data: mmap.mmap, place: slice) -> np.ndarray:
    """Decodes one array, after making sure that Flax finds nothing but numbers and bytes in it."""
    import msgpack
    from flax import serialization

    encoded = data[place]
    if not _is_extension(encoded, 0):
        raise ValueError("is of another type")
    extension = msgpack.unpackb(encoded)
    if extension.code != _ARRAY:
        raise ValueError("is of another type")
    head = msgpack.Unpacker()
    head.feed(extension.data[:1024])  # the shape and the dtype must end within these
    if head.read_array_header() != 3:
        raise ValueError("has no shape, dtype and values")
    head.skip()
    head.skip()
    if extension.data[head.tell() : head.tell() + 1] not in (b"\xc4", b"\xc5", b"\xc6"):
        raise ValueError("has no bytes as its values")
    array: np.ndarray = serialization.msgpack_restore(encoded)
    return array


def _is_chunk(name: str, chunked: Container[str]) -> bool:
    """True for what Flax stores of an array in parts: the mark, its shape by axis and its chunks."""
    parent, _, leaf = name.rpartition("/")
    return leaf == _CHUNKED or (parent.endswith(("/shape", "/chunks")) and parent.rpartition("/")[0] in chunked)


def _join(data: mmap.mmap, name: str, entries: dict[str, slice]) -> np.ndarray:
    import msgpack

    def places(kind: str) -> Iterator[slice]:
        names = (f"{name}/{kind}/{index}" for index in itertools.count())
        return (entries[part] for part in itertools.takewhile(entries.__contains__, names))

    shape = []
    for place in places("shape"):
        if place.stop - place.start > 9:
            raise ValueError("has a malformed shape")
        shape.append(msgpack.unpackb(data[place]))
    return np.concatenate([_array(data, place) for place in places("chunks")]).reshape(shape)


def _is_map(data: Bytes, at: int) -> bool:
    first = data[at : at + 1]
    return first in (b"\xde", b"\xdf") or b"\x80" <= first <= b"\x8f"


def _is_text(data: Bytes, at: int) -> bool:
    first = data[at : at + 1]
    return first in (b"\xd9", b"\xda", b"\xdb") or b"\xa0" <= first <= b"\xbf"


def _is_extension(data: Bytes, at: int) -> bool:
    first = data[at : at + 1]
    return b"\xc7" <= first <= b"\xc9" or b"\xd4" <= first <= b"\xd8"
