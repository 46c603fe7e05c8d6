"""Masks of instances: pasted into images, sampled as targets, and written as COCO's run lengths."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from twins_jax.detection.roi_align import bin_weights
from twins_jax.extra import check_installed

THRESHOLD = 0.5
"""The least probability of a pixel of a mask, and the least share of a bin of a target (mmdet's `mask_thr_binary`)."""

MASK_SIZE = 28
"""Bins of the mask head's output, both ways."""

TARGET_CHUNK = 2**23
"""Pixels of the bitmaps that `mask_targets` reads at a time."""


def paste_masks(probabilities: np.ndarray, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes the masks of boxes to the pixels that the boxes cover in an image (mmdet's `_do_paste_mask`).

    Each mask is stretched over its box; a pixel reads it bilinearly at the pixel's center, as zeros beyond the mask. It
    belongs to the instance where it reads `THRESHOLD` or more, which no pixel outside the box does. NumPy computes the
    pixels within the boxes alone; a compiled function would be compiled for each size of an image.

    Args:
        probabilities: [N, m, m] from 0 to 1.
        boxes: [N, 4] as x1, y1, x2, y2 in pixels of the image.
        height: of the image.
        width: of the image.

    Returns:
        bool [N, height, width]. It is False everywhere for a box without area: mmdet gives it pixels of the boxes
        around, or a stripe across the image.
    """
    probabilities, boxes = (np.asarray(x, np.float32) for x in (probabilities, boxes))
    masks = np.zeros((len(boxes), height, width), bool)
    for mask, values, (x1, y1, x2, y2) in zip(masks, probabilities, boxes, strict=True):
        if x2 > x1 and y2 > y1:
            rows, vertical = _stretch(y1, y2, height, len(values))
            columns, horizontal = _stretch(x1, x2, width, len(values))
            mask[rows, columns] = vertical @ values @ horizontal.T >= THRESHOLD
    return masks


def _stretch(begin: np.float32, end: np.float32, length: int, size: int) -> tuple[slice, np.ndarray]:
    """Returns the positions of an axis whose centers are within an interval, and the weights by which they read a mask.

    The arithmetic is that of PyTorch's `grid_sample` with `align_corners=False`, in its order, to round alike.

    Args:
        begin: of the interval, in pixels.
        end: of the same, which is greater.
        length: of the axis.
        size: m, of the mask.

    Returns:
        The positions, n of them, and float32 [n, m].
    """
    first, last = (int(np.clip(x, 0, length)) for x in (np.floor(begin - 0.5), np.ceil(end + 0.5)))
    center = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
    grid = (center - begin) / (end - begin) * 2 - 1
    position = ((grid + 1) * size - 1) / 2
    weights = np.maximum(1 - np.abs(position[:, None] - np.arange(size, dtype=np.float32)), 0)
    return slice(first, last), weights


def mask_targets(bitmaps: jax.Array, boxes: jax.Array, index: jax.Array, *, size: int = MASK_SIZE) -> jax.Array:
    """Samples the ground truth's masks within boxes (mmdet's `mask_target` and `BitmapMasks.crop_and_resize`).

    A box, clipped to its bitmap, is divided into bins by RoIAlign; a bin belongs to the mask where the mean of its
    samples is `THRESHOLD` or more. Products round as little as the platform can: a mean of one half is common.

    Args:
        bitmaps: [G, H, W], 0 or 1, of any dtype.
        boxes: [N, 4] as x1, y1, x2, y2 in pixels of the bitmaps.
        index: integers [N], the bitmap of each box.
        size: m, bins both ways.

    Returns:
        float32 [N, m, m], 0 or 1.
    """
    height, width = bitmaps.shape[1:]
    limits = jnp.asarray([width, height, width, height], jnp.float32)
    corners = jnp.clip(boxes.astype(jnp.float32), 0, jnp.broadcast_to(limits, boxes.shape))

    def target(box_and_index: tuple[jax.Array, jax.Array]) -> jax.Array:
        (x1, y1, x2, y2), index = box_and_index
        vertical = bin_weights(y1 - 0.5, y2 - y1, size, height)
        horizontal = bin_weights(x1 - 0.5, x2 - x1, size, width)
        bitmap = lax.dynamic_index_in_dim(bitmaps, index, keepdims=False).astype(jnp.float32)
        shares = jnp.einsum("ph,hw,qw->pq", vertical, bitmap, horizontal, precision=lax.Precision.HIGHEST)
        return (shares >= THRESHOLD).astype(jnp.float32)

    return lax.map(target, (corners, index), batch_size=max(TARGET_CHUNK // (height * width), 1))


def encode_rle(masks: np.ndarray) -> list[dict[str, Any]]:
    """Writes masks as COCO's compressed run lengths, by pycocotools.

    Args:
        masks: bool [N, H, W].

    Returns:
        For each mask {"size": [H, W], "counts": ASCII text}, as COCO's JSON files have it.

    Raises:
        InputError: (a ValueError) pycocotools is not installed.
    """
    coco = _pycocotools()
    lengths = [coco.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    return [{"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")} for rle in lengths]


def paste_rle(probabilities: np.ndarray, boxes: np.ndarray, height: int, width: int) -> list[dict[str, Any]]:
    """Returns `encode_rle(paste_masks(...))`, holding the pixels of one mask at a time.

    Arguments are those of `paste_masks`, errors those of `encode_rle`.
    """
    return [
        encode_rle(paste_masks(values[None], box[None], height, width))[0]
        for values, box in zip(np.asarray(probabilities), np.asarray(boxes), strict=True)
    ]


def _pycocotools() -> Any:
    check_installed("pycocotools", purpose="writing masks as run lengths", extra="detection")
    from pycocotools import mask

    return mask
