"""A segmenter's answers about images: of windows that slide over them, and at the sizes that the images had."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from twins_jax import ops
from twins_jax.config import MIN_IMAGE_SIZE
from twins_jax.errors import is_integer, require
from twins_jax.inputs import check_images
from twins_jax.segmentation.segmenter import TwinsSegmenter

MAX_CHUNK = 2**24
"""Logits at an image's own size that are computed at a time: 64 MB."""

WIDTH_STEP = 256
"""Pixels: widths are rounded up to a multiple of it, and images of many sizes share few programs."""


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


def label_map(logits: Sequence[jax.Array], through: Sequence[tuple[int, int]], size: tuple[int, int]) -> np.ndarray:
    """Finds the most probable class of each pixel of an image.

    Logits are resized bilinearly to the size of the network's input, and from there to the image's own, as mmseg does.
    The two steps are computed as one, for as many rows at a time as `MAX_CHUNK` allows: the memory does not grow with
    the image.

    Args:
        logits: of one or several passes over the image, each [h, w, num_classes]. Of several the mean of the softmax
            decides, as in mmseg's `aug_test`.
        through: of each pass (height, width) of the network's input.
        size: (height, width) of the image.

    Returns:
        [height, width], uint8 if 255 classes or fewer, else int32.
    """
    height, width = size
    classes = logits[0].shape[-1]
    padded = -(-width // WIDTH_STEP) * WIDTH_STEP
    rows = 1 << max(MAX_CHUNK // (padded * classes), 1).bit_length() - 1
    rows = min(rows, 1 << (height - 1).bit_length())
    taps = [
        [
            _bilinear(length, middle).then(_bilinear(middle, target))
            for length, middle, target in zip(x.shape[:2], sides, size, strict=True)
        ]
        for x, sides in zip(logits, through, strict=True)
    ]
    columns = [of_columns.cut(0, padded) for _, of_columns in taps]
    chunks = [
        np.asarray(_most_probable(list(logits), [of_rows.cut(start, rows) for of_rows, _ in taps], columns))
        for start in range(0, height, rows)
    ]
    fits = classes <= np.iinfo(np.uint8).max  # which stays free, for pixels without a class
    return np.concatenate(chunks)[:height, :width].astype(np.uint8 if fits else np.int32)


class _Taps(NamedTuple):
    """Positions along one axis as weighted sums of others: result i is the sum over t of weight[i, t] x[source[i, t]].

    Attributes:
        source: int32 [n, T].
        weight: float32 [n, T].
    """

    source: np.ndarray
    weight: np.ndarray

    def then(self, following: "_Taps") -> "_Taps":
        """Returns the sums of both, one after the other."""
        source = self.source[following.source]
        weight = self.weight[following.source] * following.weight[..., None]
        return _Taps(source.reshape(len(source), -1), weight.reshape(len(weight), -1))

    def cut(self, start: int, count: int) -> "_Taps":
        """Returns those of `count` positions, of which the last is repeated beyond the end."""
        positions = np.minimum(np.arange(start, start + count), len(self.source) - 1)
        return _Taps(self.source[positions], self.weight[positions])


def _bilinear(source: int, target: int) -> _Taps:
    """Returns the sums that `ops.resize_bilinear` computes along an axis."""
    low, high, above = ops.bilinear_neighbors(source, target)
    both = np.stack([low, high], axis=1)
    return _Taps(both, np.stack([1 - above, above], axis=1).astype(np.float32))


@jax.jit
def _most_probable(logits: list[jax.Array], rows: list[_Taps], columns: list[_Taps]) -> jax.Array:
    """Returns the labels, int32 [R, W], of the rows and columns that sums of positions of the logits give."""
    scores = []
    for x, of_rows, of_columns in zip(logits, rows, columns, strict=True):
        x = x.astype(ops.at_least_float32(x.dtype))
        x = _sums(x, of_rows, axis=0)
        x = _sums(x, of_columns, axis=1)
        scores.append(x if len(logits) == 1 else jax.nn.softmax(x))
    return jnp.argmax(functools.reduce(jnp.add, scores), axis=-1)


def _sums(x: jax.Array, taps: _Taps, axis: int) -> jax.Array:
    count = taps.source.shape[1]
    shape = (-1, 1) if axis == 1 else (-1, 1, 1)
    parts = (jnp.take(x, taps.source[:, t], axis, mode="clip") * taps.weight[:, t].reshape(shape) for t in range(count))
    return functools.reduce(jnp.add, parts)
