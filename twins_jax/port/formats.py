"""Tells the formats of weights apart by the first bytes of a file, whatever its name."""

import enum
import os

from twins_jax.errors import InputError, one_line
from twins_jax.files import require_regular
from twins_jax.port import msgpack_io, safetensors_io, shards, torch_file

HEAD = torch_file.HEAD_BYTES
"""Bytes that are looked at."""

_LEGACY_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # the number that torch.save wrote first before 1.6


class Format(enum.Enum):
    """A format that `twins_jax.port.read` reads; its value names it for people."""

    TORCH = "torch file"
    SAFETENSORS = ".safetensors file"
    MSGPACK = "msgpack file of flax.serialization"
    INDEX = "sharded weights"


def find_format(path: str) -> Format:
    """Returns the format of a file.

    Raises:
        InputError: the file cannot be read or is of no known format; says what it looks like where that is known.
    """
    head = _head(path)
    seen = "nor a folder of weights"
    if head.startswith(torch_file.ZIP_MAGIC) and b".npy" in head:
        seen = (
            "but NumPy's: `safetensors.numpy.save_file(dict(numpy.load(FILE)), 'weights.safetensors')` converts it, if "
            "its names are those of a flattened state"
        )
    elif (found := _find(head)) is not None:
        return found
    elif not head:
        seen = "but empty"
    elif head.startswith(b"version https://git-lfs"):
        seen = "but the pointer to one in Git LFS: fetch it with `git lfs pull`"
    elif head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        seen = "but a page of HTML, as a server sends instead of a file: download it again"
    raise InputError(f"{path}: neither a .safetensors file nor one of torch.save or flax.serialization, {seen}")


def is_weights(path: str) -> bool:
    """True if a file among others in a folder is meant to be weights: stricter than `find_format` where it guesses."""
    try:
        head = _head(path)
    except InputError:
        return False
    found = _find(head)
    if found is Format.TORCH:  # other archives and pickles begin alike
        return b"/data.pkl" in head or _LEGACY_TORCH in head
    return found is not None and (found is not Format.INDEX or path.endswith(shards.SUFFIX))


def _head(path: str) -> bytes:
    try:
        require_regular(path, os.stat(path).st_mode)  # before it is opened, which waits where it is a pipe
        with open(path, "rb") as file:
            return file.read(HEAD)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or one_line(error)}") from error


def _find(head: bytes) -> Format | None:
    is_safetensors = safetensors_io.is_safetensors(head)
    # It begins with the length of its header, below 2**32, whose least byte is a pickle's first in one file of 32.
    if torch_file.is_torch_file(head) and not (is_safetensors and head[4:8] == bytes(4)):
        return Format.TORCH
    if shards.is_index(head):
        return Format.INDEX
    if is_safetensors:
        return Format.SAFETENSORS
    return Format.MSGPACK if msgpack_io.is_msgpack(head) else None
