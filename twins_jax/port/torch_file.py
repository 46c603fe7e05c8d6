"""The two file formats of `torch.save`, read without torch: one unpickled value, and where the storages' bytes are.

The zip format (torch 1.6 and later) holds `NAME/data.pkl` and a member `NAME/data/KEY` for each storage. The format
before holds pickles in sequence (magic number, version, machine, value, keys), then each storage behind its length.
"""

import io
import mmap
import os
import struct
import zipfile
from typing import Any, NamedTuple

import numpy as np

from twins_jax.errors import InputError, one_line
from twins_jax.port.unpickle import Functions, Placeholder, UnpickleError, unpickle

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"
TAR_MAGIC = b"ustar"
TAR_MAGIC_AT = 257
HEAD_BYTES = TAR_MAGIC_AT + len(TAR_MAGIC)
"""The bytes of a file by which its format is recognized."""

LEGACY_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001

MAX_PICKLE = 1 << 28
"""Bytes of the longest pickle that is read. Weights are not in it, and training states of gigabytes have a few MB."""

LOCAL_HEADER = struct.Struct("<4s22xHH")
"""A zip member's own header: magic, ..., the lengths of its name and extra field; the data follow these two."""

ENCRYPTED = 0x1


class Storage(NamedTuple):
    """A run of elements in a file, as a pickle refers to it.

    Attributes:
        key: of `TorchFile.spans`.
        kind: the name of torch's class of storage, such as "torch.FloatStorage".
        start: the first element; not 0 only in views of storages, which old files have.
        size: elements.
    """

    key: str
    kind: str
    start: int
    size: int


class Span(NamedTuple):
    """A place of bytes in a file."""

    start: int
    length: int


class TorchFile(NamedTuple):
    """A file of `torch.save`.

    Attributes:
        path: the file.
        value: what was saved; storages in it are `Storage`, and objects that are no plain values `Placeholder`.
        names: the classes and functions in the pickle that were not understood, hence left alone.
        spans: the key of a storage -> the place of its bytes, all of them within the file.
        is_big_endian: the byte order of the elements.
    """

    path: str
    value: Any
    names: tuple[str, ...]
    spans: dict[str, Span]
    is_big_endian: bool

    def read(self, key: str) -> np.ndarray:
        """uint8 [bytes]: those of one storage."""
        start, length = self.spans[key]
        return np.fromfile(self.path, np.uint8, length, offset=start)


def is_torch_file(head: bytes) -> bool:
    """True if a file that begins with these bytes, `HEAD_BYTES` of them, may be one of `torch.save`."""
    return head.startswith((ZIP_MAGIC, PICKLE_MAGIC)) or head[TAR_MAGIC_AT:] == TAR_MAGIC


def open_torch_file(path: str, functions: Functions) -> TorchFile:
    """Reads a file of either format.

    Args:
        path: an existing file.
        functions: called in the place of what the file names, see `unpickle`.

    Raises:
        InputError: the file is damaged, or of another format.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if head[TAR_MAGIC_AT:] == TAR_MAGIC:
        raise InputError(
            f"{path}: a tar archive: torch.save's format before torch 0.1.10 (2017), which only torch.load reads (then "
            f"torch.save), or files to unpack first"
        )
    try:
        return _open_zip(path, functions) if head.startswith(ZIP_MAGIC) else _open_legacy(path, functions)
    except UnpickleError as error:
        raise InputError(f"{path}: not a readable torch checkpoint: {one_line(error)}") from error


def _open_zip(path: str, functions: Functions) -> TorchFile:
    try:
        members = _check_members(path)
    except InputError:
        raise
    except Exception as error:  # zipfile raises many kinds, which depend on the bytes
        raise InputError(f"{path}: damaged or truncated torch checkpoint: {one_line(error)}") from error
    roots = [name.removesuffix("data.pkl") for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise InputError(
            f"{path}: not a readable torch checkpoint: a zip archive with {len(roots)} data.pkl: must be 1"
        )
    root = roots[0]
    if members[f"{root}data.pkl"].length > MAX_PICKLE:
        raise InputError(f"{path}: not a readable torch checkpoint: its pickle is longer than {MAX_PICKLE:,} bytes")

    def read(name: str, default: bytes = b"") -> bytes:
        if name not in members:
            return default
        with open(path, "rb") as file:
            file.seek(members[name].start)
            return file.read(members[name].length)

    def load_storage(saved_id: Any) -> Any:
        tag, kind, key, _, size = saved_id
        return _storage(tag, kind, key, 0, size)

    byte_order = read(f"{root}byteorder", b"little")
    if byte_order not in (b"little", b"big"):
        raise InputError(f"{path}: not a readable torch checkpoint: unknown byte order {byte_order[:20]!r}")
    names: dict[str, None] = {}
    value = unpickle(io.BytesIO(read(f"{root}data.pkl")), functions, load_storage, names)
    folder = f"{root}data/"
    spans = {name.removeprefix(folder): span for name, span in members.items() if name.startswith(folder)}
    return TorchFile(path, value, tuple(names), spans, byte_order == b"big")


def _check_members(path: str) -> dict[str, Span]:
    """Finds the bytes of each member, and compares them with their checksums, as torch does not.

    Members are stored as they are and do not overlap: what is read is never more than the file.
    """
    members: dict[str, Span] = {}
    file_size = os.path.getsize(path)
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        infos = archive.infolist()
        if any(info.filename.endswith("/constants.pkl") for info in infos):
            raise InputError(f"{path}: a TorchScript archive: must hold weights, torch.save(model.state_dict(), ...)")
        # torch.serialization.set_crc32_options(False) writes 0 for every checksum.
        has_checksums = any(info.CRC for info in infos)
        for info in infos:
            if info.filename in members:
                raise ValueError(f"member {info.filename[:80]!r} twice")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & ENCRYPTED:
                raise ValueError(
                    f"member {info.filename[:80]!r} is compressed or encrypted, which torch.save never does"
                )
            file.seek(info.header_offset)
            magic, name_length, extra_length = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
            start = file.tell() + name_length + extra_length
            if magic != ZIP_MAGIC or info.file_size != info.compress_size or start + info.file_size > file_size:
                raise ValueError(f"member {info.filename[:80]!r} is cut off")
            members[info.filename] = Span(start, info.file_size)
        end = 0
        for start, length in sorted(members.values()):
            if start < end:
                raise ValueError("its members overlap")
            end = start + length
        damaged = archive.testzip() if has_checksums else None
    if damaged is not None:
        raise InputError(f"{path}: damaged torch checkpoint: {damaged!r} does not match its checksum")
    return members


def _open_legacy(path: str, functions: Functions) -> TorchFile:
    kinds: dict[str, str] = {}

    def no_persistent(saved_id: Any) -> Any:
        raise UnpickleError(f"a persistent id of type {type(saved_id).__name__}")

    def load_storage(saved_id: Any) -> Any:
        if saved_id[0] == "module":  # a class, and its source code as text
            return saved_id[1]
        tag, kind, key, _, size, view = saved_id
        start, length = (0, size) if view is None else view[1:]
        storage = _storage(tag, kind, key, start, length)
        kinds.setdefault(storage.key, storage.kind)
        return storage

    names: dict[str, None] = {}
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        if unpickle(mapped, {}, no_persistent, {}) != LEGACY_MAGIC_NUMBER:
            raise UnpickleError("a pickle that torch.save did not write")
        if unpickle(mapped, {}, no_persistent, {}) != LEGACY_VERSION:
            raise UnpickleError(f"a version other than {LEGACY_VERSION}")
        unpickle(mapped, {}, no_persistent, {})  # the machine that wrote it; storages are little-endian on all of them
        value = unpickle(mapped, functions, load_storage, names)
        keys = unpickle(mapped, {}, no_persistent, {})
        spans: dict[str, Span] = {}
        for key in keys if isinstance(keys, list) else ():
            if not isinstance(key, str) or key not in kinds:
                raise UnpickleError("a storage that no tensor has")
            size = int.from_bytes(mapped.read(8), "little", signed=True)
            length, start = size * element_size(kinds[key]), mapped.tell()
            if size < 0 or start + length > len(mapped):
                raise UnpickleError("truncated: a storage is not all there")
            spans[key] = Span(start, length)
            mapped.seek(start + length)
    return TorchFile(path, value, tuple(names), spans, False)


def _storage(tag: Any, kind: Any, key: Any, start: Any, size: Any) -> Storage:
    numbers = isinstance(start, int) and isinstance(size, int)
    if tag != "storage" or not (isinstance(kind, Placeholder) and isinstance(key, (str, int)) and numbers):
        raise UnpickleError("a persistent id that is no storage")
    return Storage(str(key), kind.name, start, size)


ELEMENT_SIZES = {
    "torch.ComplexDoubleStorage": 16,
    "torch.DoubleStorage": 8,
    "torch.LongStorage": 8,
    "torch.ComplexFloatStorage": 8,
    "torch.FloatStorage": 4,
    "torch.IntStorage": 4,
    "torch.QInt32Storage": 4,
    "torch.HalfStorage": 2,
    "torch.BFloat16Storage": 2,
    "torch.ShortStorage": 2,
}
"""Bytes; those of other classes of storage have 1."""


def element_size(kind: str) -> int:
    """Bytes of one element of a storage of this class."""
    return ELEMENT_SIZES.get(kind, 1)
