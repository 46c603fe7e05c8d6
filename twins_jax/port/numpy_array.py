"""NumPy arrays as pickles describe them, rebuilt from their bytes; NumPy's own functions are never called."""

import math
from typing import Any

import numpy as np

from twins_jax.port.unpickle import Placeholder

MODULES = ("numpy.core", "numpy._core")
"""NumPy 1's and NumPy 2's name of the same package."""

RECONSTRUCT = tuple(f"{module}.multiarray._reconstruct" for module in MODULES)
FROM_BUFFER = tuple(f"{module}.numeric._frombuffer" for module in MODULES)  # of protocol 5
NAMES = (*RECONSTRUCT, *FROM_BUFFER, "numpy.ndarray", "numpy.dtype", "_codecs.encode", "builtins.bytes")
"""All that a pickle names for an array."""

DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", "c8", "c16")
ORDERS = ("<", ">", "|", "=")

MAX_DIMENSIONS = 32


def is_numpy_array(value: Any) -> bool:
    """True for a placeholder of an array, whatever is in it."""
    return isinstance(value, Placeholder) and value.name in (*RECONSTRUCT, *FROM_BUFFER)


def rebuild(value: Placeholder) -> np.ndarray:
    """The array of a placeholder for which `is_numpy_array` holds, as a copy.

    Raises:
        ValueError: it is not of plain numbers, or has other than its shape's bytes.
    """
    try:
        if value.name in RECONSTRUCT:
            _, shape, dtype, is_fortran, data = value.state
            order = "F" if is_fortran else "C"
        else:
            data, dtype, shape, order = value.arguments
    except (TypeError, ValueError) as error:
        raise ValueError("is a damaged NumPy array") from error
    kind, data = _dtype(dtype), _bytes(data)
    if not (
        isinstance(shape, tuple)
        and len(shape) <= MAX_DIMENSIONS
        and all(type(length) is int and length >= 0 for length in shape)
        and math.prod(shape) * kind.itemsize == len(data)
        and order in ("C", "F")
    ):
        raise ValueError("is a damaged NumPy array")
    elements = np.frombuffer(data, kind)
    array = elements.reshape(shape[::-1]).T if order == "F" else elements.reshape(shape)
    return array.astype(kind.newbyteorder("="))


def _dtype(value: Any) -> np.dtype[Any]:
    if isinstance(value, Placeholder) and value.name == "numpy.dtype" and isinstance(value.arguments, tuple):
        code, state = value.arguments[:1], value.state
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
        if code and isinstance(code[0], str) and code[0] in DTYPES and isinstance(order, str) and order in ORDERS:
            return np.dtype(order + code[0])
    raise ValueError("is a NumPy array of other than plain numbers")


def _bytes(value: Any) -> bytes:
    """Bytes, which protocol 2 has as text of Latin-1, or as a call of `bytes` for none."""
    if isinstance(value, Placeholder) and value.name == "builtins.bytes" and value.arguments == ():
        return b""
    if isinstance(value, Placeholder) and value.name == "_codecs.encode":
        text = value.arguments[0] if isinstance(value.arguments, tuple) and value.arguments else None
        value = text.encode("latin-1") if isinstance(text, str) else None
    if not isinstance(value, (bytes, bytearray)):
        raise ValueError("is a NumPy array without bytes")
    return bytes(value)
