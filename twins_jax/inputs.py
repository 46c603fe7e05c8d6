"""What models and preprocessing are called with: converted to arrays of JAX, or refused."""

import jax
import jax.numpy as jnp

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
    allowed = "a floating-point dtype, of normalized values, as twins_jax.preprocess.normalize makes them"
    require("images.dtype", str(images.dtype), is_float, allowed)
    return images


def as_array(field: str, value: object) -> jax.Array:
    """Returns an array of JAX as it is, and one of NumPy, PyTorch or nested lists as a copy.

    Args:
        field: the argument, for errors.
        value: as a caller gives it.

    Raises:
        InputError: it is no array of numbers, or in the memory of a device that JAX does not read.
    """
    if isinstance(value, jax.Array):
        return value
    try:
        try:
            return jnp.array(value)
        except TypeError:
            if not hasattr(value, "__dlpack__"):
                raise
            # A tensor of bfloat16, which NumPy does not know. Its owner may change it once this returns.
            return jax.block_until_ready(jnp.array(jnp.from_dlpack(value)))
    except Exception as error:  # of many kinds: whatever converts the value raises its own
        raise InputError(f"{field}: a {type(value).__name__} that is no array of numbers: {one_line(error)}") from error
