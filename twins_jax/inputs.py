"""Arrays that models and preprocessing are called with: converted to those of JAX, or refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from twins_jax.config import MIN_IMAGE_SIZE
from twins_jax.errors import InputError, one_line, require


def check_images(images: jax.Array, in_channels: int) -> jax.Array:
    """Returns the images that a model is called with as an array, or says what is wrong with them.

    Args:
        images: normalized floats [B, H, W, in_channels]; B may be 0. What is no array of JAX is converted, as
            `as_array` does.
        in_channels: the model's.

    Raises:
        InputError: (a ValueError) naming what is wrong with the images.
    """
    images = as_array("images", images)
    shape = images.shape
    allowed = f"[B, H, W, {in_channels}]"
    if len(shape) == 4 and shape[1] == in_channels:
        allowed += ", channels last: images.transpose(0, 2, 3, 1)"
    elif len(shape) == 3 and shape[-1] == in_channels:
        allowed += ", with a batch axis: images[None]"
    require("images.shape", shape, len(shape) == 4 and shape[-1] == in_channels, allowed)
    require("images.shape", shape, min(shape[1:3]) >= MIN_IMAGE_SIZE, f"of H and W from {MIN_IMAGE_SIZE}")
    is_float = jnp.issubdtype(images.dtype, jnp.floating)
    allowed = "a floating-point dtype, of normalized values, as twins_jax.normalize makes them"
    require("images.dtype", str(images.dtype), is_float, allowed)
    return images


def as_array(field: str, value: object) -> jax.Array:
    """Returns an array of JAX as it is, and one of NumPy, PyTorch or nested lists as a copy.

    Any byte order and NumPy's long double are converted. A tensor of PyTorch may require a gradient, which ends here.

    Args:
        field: the argument, for errors.
        value: as a caller gives it.

    Raises:
        InputError: it is no array of numbers, has masked values or integers that JAX's dtype does not hold, or is in
            the memory of a device that JAX does not read.
    """
    if isinstance(value, jax.Array):
        return value
    try:
        plain = _plain(field, value)
        return plain if isinstance(plain, jax.Array) else jnp.array(plain)
    except InputError:
        raise
    except Exception as error:  # of many kinds: whatever converts the value raises its own
        raise InputError(f"{field}: a {type(value).__name__} that is no array of numbers: {one_line(error)}") from error


def native(array: np.ndarray | np.generic) -> np.ndarray | np.generic:
    """Returns an array of NumPy in the byte order and the precision that JAX knows: as it is, or a converted copy."""
    if array.dtype.char in "gG":  # long double: of 8, 12 or 16 bytes, by platform
        return array.astype(np.float64 if array.dtype.char == "g" else np.complex128)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _plain(field: str, value: object) -> Any:
    """Returns what `jnp.array` converts without losing anything."""
    if isinstance(value, (list, tuple)):
        return [_plain(field, element) for element in value]
    if isinstance(value, jax.Array):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return _checked(field, value)
    if hasattr(value, "__dlpack__"):
        return _from_tensor(value)
    return _checked(field, np.asarray(value)) if hasattr(value, "__array__") else value


def _from_tensor(tensor: Any) -> jax.Array:
    """Copies a tensor of another library: its owner may change it once this returns."""
    if hasattr(tensor, "resolve_neg"):  # PyTorch exports neither what requires a gradient nor postponed signs
        tensor = tensor.detach().resolve_conj().resolve_neg()
    try:
        return jnp.array(tensor)
    except TypeError:  # bfloat16, which NumPy does not know
        return jax.block_until_ready(jnp.array(jnp.from_dlpack(tensor)))


def _checked(field: str, array: np.ndarray | np.generic) -> np.ndarray | np.generic:
    """Returns an array of NumPy as `native` does, or refuses one whose values JAX would change."""
    if np.ma.is_masked(array):
        raise InputError(f"{field}: has masked values: must be filled first, such as by {field}.filled(0)")
    dtype = array.dtype
    is_numeric = jnp.issubdtype(dtype, np.number) or dtype == np.bool_
    require(f"{field}.dtype", str(dtype), is_numeric, "a dtype of numbers")
    array = native(array)
    kept = jax.dtypes.canonicalize_dtype(array.dtype)
    if dtype.kind in "iu" and kept.itemsize < dtype.itemsize:
        low, high, info = int(array.min(initial=0)), int(array.max(initial=0)), jnp.iinfo(kept)
        require(field, f"{low} to {high}", info.min <= low and high <= info.max, f"integers that {kept} holds")
    return array
