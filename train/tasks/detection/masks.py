"""Masks of objects: from the polygons or RLE of COCO's files to bitmaps, and bitmaps as bits."""

import json
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from twins_jax.errors import InputError, is_integer, shown

_ALLOWED = "a list of polygons, each x1, y1, x2, y2 and onward of three points or more, or RLE with size and counts"

_COUNTS = re.compile(r"(?:[P-o]{0,6}[0-O])+")
"""Compressed counts; see `run_lengths`. Counts of 32 bits have seven characters at most. pycocotools reads on beyond a
text whose last number does not end."""

Size = tuple[int, int]


def check_segmentation(segmentation: Any, size: Size, place: str) -> None:
    """Checks polygons or RLE, as far as it can be done without drawing them.

    Args:
        segmentation: as JSON holds it: polygons [[x, y, ...], ...], or {"size": [H, W], "counts": list or text}.
        size: height and width of the image.
        place: the file and the entry, for messages.

    Raises:
        InputError: they are none; a polygon has less than three points, or points further from the image than it is
            large; RLE is of another size, or of other pixels than it has.
    """
    if isinstance(segmentation, list) and segmentation:
        for number, polygon in enumerate(segmentation):
            _check_polygon(polygon, size, f"{place}: polygon {number}")
    elif isinstance(segmentation, dict):
        _check_rle(segmentation, size, f"{place}: segmentation")
    else:
        raise InputError(f"{place}: segmentation={_described(segmentation)}; must be {_ALLOWED}")


def _check_polygon(polygon: Any, size: Size, place: str) -> None:
    if not isinstance(polygon, list) or not set(map(type, polygon)) <= {int, float}:
        raise InputError(f"{place}: is {_described(polygon)}; must be numbers x1, y1, x2, y2 and onward")
    if len(polygon) % 2 or len(polygon) < 6:
        found = f"{len(polygon) // 2} points" if len(polygon) % 2 == 0 else f"{len(polygon)} numbers"
        raise InputError(f"{place}: has {found}; must have two numbers for each of three points or more")
    for axis, side in ((0, size[1]), (1, size[0])):
        values = polygon[axis::2]
        # pycocotools takes memory for each pixel along an edge, outside of the image too. NaN passes `min` and `max`.
        if not (-side <= min(values) and max(values) <= 2 * side and math.isfinite(sum(values))):
            raise InputError(
                f"{place}: has points outside its image of {size[1]} x {size[0]} pixels by more than its size; must be "
                "in pixels"
            )


def _check_rle(rle: dict[str, Any], size: Size, place: str) -> None:
    given, counts = rle.get("size"), rle.get("counts")
    if given != [*size] or not all(is_integer(side, 1) for side in given):
        raise InputError(f"{place}: is RLE of the size {_described(given)}; must be {[*size]}, as its image")
    pixels = size[0] * size[1]
    if isinstance(counts, str) and _COUNTS.fullmatch(counts):
        lengths = run_lengths(counts)
    elif isinstance(counts, list) and all(is_integer(count, 0) for count in counts):
        lengths = np.array(counts, np.int64)
    else:
        raise InputError(f"{place}: is RLE of the counts {_described(counts)}; must be integers from 0, or COCO's text")
    # pycocotools leaves the pixels beyond the runs as the memory was, and ends the process on negative runs.
    if lengths.min(initial=0) < 0 or lengths.sum() != pixels:
        found = f"{lengths.sum()} pixels" if lengths.min(initial=0) >= 0 else f"a run of {lengths.min()} pixels"
        raise InputError(f"{place}: is RLE of {found}; must be runs of {pixels} pixels in all, as its image")


def run_lengths(counts: str) -> np.ndarray:
    """Returns the lengths of the runs that COCO's compressed text holds, int64 [R], of zeros first.

    A character holds 6 bits, less 48: five of a number, the lowest first, and one that says if more follow; the fifth
    bit of a number's last character is its sign. From the fourth number on, each is the difference to the number before
    the last (rleToString in pycocotools' common/maskApi.c).

    Args:
        counts: numbers of seven characters at most, the last from "0" to "O" and the others from "P" to "o".
    """
    bits = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((bits & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(bits)) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((bits & 31) << 5 * place, starts)
    numbers -= np.where(bits[ends] & 16, 32 << 5 * place[ends], 0)
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


def _described(value: Any) -> str:
    return shown(json.dumps(value))


def draw(segmentation: Any, size: Size) -> np.ndarray:
    """Returns the bitmap of a segmentation that `check_segmentation` passed, uint8 [H, W] of 0 and 1.

    Pixels are those of pycocotools' `annToMask`, as in mmdet's `LoadAnnotations`.

    Args:
        segmentation: polygons, whose union is drawn, or RLE.
        size: height and width of the image.
    """
    from pycocotools import mask as coco_mask  # late: boxes alone do not need it

    if isinstance(segmentation, list):
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        rle = coco_mask.frPyObjects(segmentation, *size)
    else:
        rle = segmentation
    bitmap: np.ndarray = coco_mask.decode([rle])[..., 0]
    return np.ascontiguousarray(bitmap)  # pycocotools fills columns


def pack_bits(bitmap: np.ndarray, out: np.ndarray) -> None:
    """Puts a bitmap [h, w] of 0 and 1 into the top left of uint8 [H, W / 8], eight pixels of a row in a byte."""
    packed = np.packbits(bitmap, axis=1)
    out[: packed.shape[0], : packed.shape[1]] = packed


def unpack_bits(packed: jax.Array) -> jax.Array:
    """uint8 [..., H, W / 8], as `pack_bits` fills it, -> uint8 [..., H, W] of 0 and 1. For the device.

    Bitmaps of all objects of a batch are large, eight times the bits: unpack those of an image at a time.
    """
    bits = jnp.right_shift(packed[..., None], jnp.arange(7, -1, -1, dtype=jnp.uint8)) & jnp.uint8(1)
    return bits.reshape(*packed.shape[:-1], packed.shape[-1] * 8)
