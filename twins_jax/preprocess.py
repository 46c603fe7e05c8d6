"""Images as Twins models expect them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from twins_jax.config import MIN_IMAGE_SIZE
from twins_jax.errors import is_integer, is_number, require
from twins_jax.inputs import as_array

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

IMAGENET_MEAN = np.array(_MEAN, np.float32)
"""Mean of ImageNet-1K's red, green and blue in [0, 1]; all published weights were trained with it."""

IMAGENET_STD = np.array(_STD, np.float32)
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


INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
"""Pillow's filters, by its names for them."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The way from an image file to the input with which a model was evaluated.

    The shorter side is resized to `image_size / crop`, rounded down, the central square of `image_size` is cut out, and
    its channels, scaled to [0, 1], get `mean` subtracted and are divided by `std`.

    Attributes:
        image_size: height and width of the model's input, in pixels.
        crop: side of the center crop / shorter side of the resized image.
        mean: of each channel.
        std: of each channel.
        interpolation: of the resizing, one of `INTERPOLATIONS`.

    Raises:
        InputError: (a ValueError) naming the field, its value and what it must be.
    """

    image_size: int = 224
    crop: float = 0.875
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        size, crop, mean, std = self.image_size, self.crop, self.mean, self.std
        require("image_size", size, is_integer(size, MIN_IMAGE_SIZE), f"an integer from {MIN_IMAGE_SIZE}")
        require("crop", crop, is_number(crop) and 0 < crop <= 1, "a fraction in (0, 1]")
        for field, values, positive in (("mean", mean, False), ("std", std, True)):
            are_numbers = (
                isinstance(values, tuple | list)
                and len(values) > 0
                and all(is_number(value) and math.isfinite(value) for value in values)
            )
            is_right = are_numbers and not (positive and min(values) <= 0)
            require(field, values, is_right, f"a {'positive ' * positive}number for each channel")
            object.__setattr__(self, field, tuple(map(float, values)))
        require("std", std, len(std) == len(mean), f"as long as mean, {len(mean)}")
        allowed = f"one of {', '.join(INTERPOLATIONS)}"
        require("interpolation", self.interpolation, self.interpolation in INTERPOLATIONS, allowed)
