"""Images as segmenters expect them: of their own aspect ratio, resized as OpenCV resizes."""

import dataclasses

import numpy as np

from twins_jax.keep_ratio import KeepRatioPreprocessing


@dataclasses.dataclass(frozen=True)
class SegmentationPreprocessing(KeepRatioPreprocessing):
    """The way from an image to the input with which a segmenter was evaluated.

    See `KeepRatioPreprocessing` for its steps, fields and errors. The defaults are those of mmseg's
    `Resize(img_scale=(2048, 512))` and upstream's `segmentation/configs/_base_/datasets/ade20k.py`.
    """

    shorter: int = 512
    longer: int = 2048


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image bilinearly, without antialiasing, with the pixels of OpenCV's `resize` (INTER_LINEAR).

    OpenCV's weights are integers of 11 bits, and its sums are shifted, not rounded, on the way.

    Args:
        image: uint8 [H, W, C].
        size: height and width of the result.

    Returns:
        uint8 [*size, C].
    """
    if image.shape[:2] == tuple(size):
        return image
    left, right, weights = _columns(image.shape[1], size[1])
    # Rows that no output reads are left out: a small copy of a large photograph reads few of them.
    top, bottom, row_weights = _rows(image.shape[0], size[0])
    needed, index = np.unique(np.concatenate([top, bottom]), return_inverse=True)
    rows = image[needed].astype(np.int32)
    sums = rows[:, left] * weights[0][:, None] + rows[:, right] * weights[1][:, None]
    sums >>= 4
    upper, lower = (
        sums[part] * weight[:, None, None] >> 16 for part, weight in zip(np.split(index, 2), row_weights, strict=True)
    )
    return ((upper + lower + 2) >> 2).astype(np.uint8)


def resize_nearest(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Takes the pixel floor(i * in / out) along each axis: for pictures of label maps.

    Args:
        pixels: [H, W, ...].
        size: height and width of the result.

    Returns:
        [*size, ...].
    """
    rows, columns = (np.arange(wanted) * given // wanted for wanted, given in zip(size, pixels.shape[:2], strict=True))
    return pixels[rows[:, None], columns]


def _positions(length: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    ratio = length / wanted
    position = ((np.arange(wanted) + 0.5) * ratio - 0.5).astype(np.float32)
    below = np.floor(position).astype(np.int64)
    return below, position - below.astype(np.float32)


def _weights(fraction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    one = np.float32(1)
    first, second = (np.rint(part * np.float32(2048)).astype(np.int32) for part in (one - fraction, fraction))
    return first, second


def _columns(length: int, wanted: int) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    below, fraction = _positions(length, wanted)
    fraction = np.where((below < 0) | (below >= length - 1), np.float32(0), fraction)
    below = np.clip(below, 0, length - 1)
    return below, np.minimum(below + 1, length - 1), _weights(fraction)


def _rows(length: int, wanted: int) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    below, fraction = _positions(length, wanted)  # unlike those of columns, weights stay where rows are clipped
    return np.clip(below, 0, length - 1), np.clip(below + 1, 0, length - 1), _weights(fraction)
