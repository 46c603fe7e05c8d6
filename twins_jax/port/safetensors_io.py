"""Reads and writes .safetensors files, without torch."""

import numpy as np

from twins_jax.errors import InputError, one_line
from twins_jax.port.convert import Tensors

METADATA_KEY = "twins_jax"


def is_safetensors(head: bytes) -> bool:
    """True if a file that begins with these bytes means to be .safetensors: a length of 8 bytes, then JSON."""
    return head[8:9] == b"{"


def read_safetensors(path: str) -> Tensors:
    """Reads all tensors in the file's dtypes (bfloat16 as ml_dtypes has it).

    Raises:
        InputError: the file is damaged, truncated or of another format.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no dict
    except Exception as error:  # what the library raises depends on the bytes (SafetensorError, KeyError, TypeError)
        raise InputError(f"{path}: not a readable .safetensors file: {one_line(error)}") from error


def read_metadata(path: str) -> str | None:
    """Returns the text that `write_safetensors` stored beside the tensors; None if there is none."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        text: str | None = (file.metadata() or {}).get(METADATA_KEY)
    return text


def write_safetensors(path: str, tensors: Tensors, *, framework: str, about: str | None = None) -> None:
    """Writes arrays.

    Args:
        path: the file.
        tensors: name -> array; emptied.
        framework: the one whose names they have, "pt" or "jax"; stored where Hugging Face's tools look for it.
        about: text to store beside them.
    """
    from safetensors.numpy import save_file

    contiguous = {name: np.ascontiguousarray(tensors.pop(name)) for name in list(tensors)}
    save_file(contiguous, path, metadata={"format": framework} | ({METADATA_KEY: about} if about else {}))
