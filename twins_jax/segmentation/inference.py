"""A segmenter's answers about images: of windows that slide over them, and at the sizes that the images had."""

import jax
import jax.numpy as jnp
import numpy as np

from twins_jax import ops
from twins_jax.config import MIN_IMAGE_SIZE
from twins_jax.errors import is_integer, require
from twins_jax.inputs import check_images
from twins_jax.segmentation.segmenter import TwinsSegmenter


def check_windows(crop_size: int, stride: int) -> None:
    """Raises InputError unless windows of a side and a stride cover every pixel."""
    require("crop_size", crop_size, is_integer(crop_size, MIN_IMAGE_SIZE), f"an integer from {MIN_IMAGE_SIZE}")
    allowed = f"an integer from 1 to crop_size, {crop_size}: windows leave no gaps"
    require("stride", stride, is_integer(stride, 1, int(crop_size)), allowed)


def slide_logits(model: TwinsSegmenter, images: jax.Array, *, crop_size: int, stride: int) -> jax.Array:
    """Classifies every pixel by windows that slide over the images, and overlap (mmseg's `slide_inference`).

    Windows are squares, or as high or wide as the images where these are smaller. The last ones are shifted inside. The
    logits of a pixel are the mean over its windows. One window of all images is computed at a time.

    Args:
        model: called without `rngs`.
        images: normalized floats [B, H, W, in_channels], H and W at least 32.
        crop_size: side of a window in pixels, from 32.
        stride: from one window to the next in pixels, at most `crop_size`.

    Returns:
        Logits [B, H, W, num_classes] in the dtype of the model's. The sums are float32 at least.

    Raises:
        InputError: (a ValueError) naming what is wrong with an argument.
    """
    check_windows(crop_size, stride)
    images = check_images(images, model.config.in_channels)
    batch, *sides, channels = images.shape
    window = [min(crop_size, side) for side in sides]
    starts = [_starts(side, length, stride) for side, length in zip(sides, window, strict=True)]
    places = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, 2)

    def add(total: jax.Array, place: jax.Array) -> tuple[jax.Array, None]:
        corner = (0, *place, 0)
        logits = model(jax.lax.dynamic_slice(images, corner, (batch, *window, channels)))
        before = jax.lax.dynamic_slice(total, corner, logits.shape)
        return jax.lax.dynamic_update_slice(total, before + logits, corner), None

    dtype = model.config.dtype
    shape = (batch, *sides, model.num_classes)
    total, _ = jax.lax.scan(add, jnp.zeros(shape, ops.at_least_float32(dtype)), jnp.asarray(places, np.int32))
    of_rows, of_columns = (
        sum((np.arange(side) >= start) & (np.arange(side) < start + length) for start in begins).astype(np.float32)
        for side, length, begins in zip(sides, window, starts, strict=True)
    )
    return (total / (of_rows[:, None, None] * of_columns[:, None])).astype(dtype)


def _starts(side: int, window: int, stride: int) -> np.ndarray:
    """Returns the first positions of windows along one side of an image."""
    count = max(side - window + stride - 1, 0) // stride + 1
    return np.minimum(np.arange(count) * stride, side - window)
