"""Images as Twins models expect them."""

import jax
import jax.numpy as jnp
import numpy as np

from twins_jax.config import MIN_IMAGE_SIZE
from twins_jax.errors import InputError, one_line, require

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
"""Mean of ImageNet-1K's red, green and blue in [0, 1]; all published weights were trained with it."""

IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
"""Standard deviation of the same."""


def normalize(images: jax.Array) -> jax.Array:
    """Makes images of mean 0 and standard deviation 1 over ImageNet.

    Training calls it on the device: a quarter of the bytes crosses to it.

    Args:
        images: uint8 [..., H, W, 3], RGB. Integers of another dtype must be known values from 0 to 255. What is no
            array of JAX is converted, as `as_array` does.

    Returns:
        float32 [..., H, W, 3].

    Raises:
        InputError: (a ValueError) naming what is wrong with the images.
    """
    images = as_array("images", images)
    shape, dtype = images.shape, images.dtype
    channels_first = len(shape) > 2 and shape[-3] == 3
    allowed = f"[..., H, W, 3]{', channels last: jnp.moveaxis(images, -3, -1)' if channels_first else ''}"
    require("images.shape", shape, len(shape) > 2 and shape[-1] == 3, allowed)
    if jnp.issubdtype(dtype, jnp.integer) and dtype != jnp.uint8 and not isinstance(images, jax.core.Tracer):
        low, high = int(images.min(initial=0)), int(images.max(initial=0))
        require("images", f"{low} to {high}", low >= 0 and high <= 255, "from 0 to 255")
        images = images.astype(jnp.uint8)
    require("images.dtype", str(dtype), images.dtype == jnp.uint8, "uint8, of values from 0 to 255")
    mean, std = (channels.reshape((1,) * (len(shape) - 1) + (3,)) for channels in (IMAGENET_MEAN, IMAGENET_STD))
    return (images.astype(jnp.float32) / 255.0 - mean) / std


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
