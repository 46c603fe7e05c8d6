"""Reads and writes .safetensors files, without torch."""

import numpy as np

from twins_jax.errors import InputError, one_line
from twins_jax.port.convert import Tensors


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


def write_safetensors(path: str, tensors: Tensors, *, framework: str) -> None:
    """Writes arrays.

    Args:
        path: the file.
        tensors: name -> array; emptied.
        framework: the one whose names they have, "pt" or "jax"; stored where Hugging Face's tools look for it.
    """
    from safetensors.numpy import save_file

    contiguous = {name: np.ascontiguousarray(tensors.pop(name)) for name in list(tensors)}
    save_file(contiguous, path, metadata={"format": framework})
