"""Compiled kernels on uint8 images [H, W, 3], equal pixel for pixel to PIL's bicubic resize and to its shears.

PIL computes all of an image, one value at a time. These compute the part that is needed, many values at a time, and
release the GIL. The arithmetic, and its order, is that of Pillow's src/libImaging/Resample.c and Geometry.c.
"""

import math

import numpy as np

from .compiled import compiled

FRACTION_BITS = 22
"""Pillow's fixed-point weights: 32 bits less 8 for the pixel and 2 for sums outside [0, 1] (PRECISION_BITS)."""

TILE = 16
"""Rows of a tile of the transposition: its part of the output stays in the first-level cache."""


@compiled
def resize(
    image: np.ndarray,
    full_size: tuple[int, int],
    window: tuple[int, int],
    size: tuple[int, int],
    mirror: bool = False,
) -> np.ndarray:
    """Returns a window of PIL's `image.resize(full_size, BICUBIC)`, computing no more than it needs.

    Args:
        image: uint8 [H, W, 3].
        full_size: Height and width of the whole resized image.
        window: Top and left of the window in the resized image.
        size: Height and width of the window, which must be inside the resized image.
        mirror: Exchange left and right of the window.

    Returns:
        uint8 [*size, 3].
    """
    rows, row_counts, row_weights = _filter(image.shape[0], full_size[0], window[0], size[0])
    columns, column_counts, column_weights = _filter(image.shape[1], full_size[1], window[1], size[1])
    top, bottom = rows[0], rows[-1] + row_counts[-1]
    left, right = columns[0], columns[-1] + column_counts[-1]
    if mirror:
        columns, column_counts, column_weights = columns[::-1], column_counts[::-1], column_weights[::-1]
    part = image[top:bottom, left:right]
    # A CPU is fast at weighted sums of whole rows: the horizontal pass works on the transposed image. The order of the
    # passes counts because the result of each is rounded to 8 bits; it is that of Pillow 13.
    if image.shape[0] - full_size[0] > max(0, 2 * (image.shape[1] - full_size[1])):
        flat = _weighted_rows(part.copy(), rows - top, row_counts, row_weights)
        return transpose(_weighted_rows(transpose(flat), columns - left, column_counts, column_weights))
    turned = _weighted_rows(transpose(part), columns - left, column_counts, column_weights)
    return _weighted_rows(transpose(turned), rows - top, row_counts, row_weights)


@compiled
def _filter(length: int, full_length: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes the filter of pixels first..first+count of a line resized from `length` to `full_length` pixels.

    Returns:
        The first source pixel of each, int64 [count]; the number of its source pixels, int64 [count]; and their
        weights, int32 [count, taps].
    """
    scale = length / full_length
    stretch = max(scale, 1.0)  # antialiasing: the filter covers as many source pixels as fall on one of the output
    reach = 2.0 * stretch
    starts, counts = np.empty(count, np.int64), np.empty(count, np.int64)
    weights = np.zeros((count, 2 * math.ceil(reach) + 1), np.int32)
    values = np.empty(weights.shape[1])
    for i in range(count):
        center = (first + i + 0.5) * scale
        start, end = max(int(center - reach + 0.5), 0), min(int(center + reach + 0.5), length)
        total = 0.0
        for j in range(end - start):
            values[j] = _bicubic((start + j - center + 0.5) * (1.0 / stretch))
            total += values[j]
        for j in range(end - start):
            weight = values[j] / total * (1 << FRACTION_BITS)
            weights[i, j] = int(weight - 0.5) if weight < 0 else int(weight + 0.5)
        starts[i], counts[i] = start, end - start
    return starts, counts, weights


@compiled
def _bicubic(x: float) -> float:
    """The kernel of Keys (1981) with a = -0.5."""
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return 0.0


@compiled
def transpose(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> [W, H, 3], by tiles, which is several times as fast as copying NumPy's transposed view."""
    height, width = image.shape[:2]
    out = np.empty((width, height, 3), np.uint8)
    for top in range(0, height, TILE):
        for x in range(width):
            for y in range(top, min(top + TILE, height)):
                for channel in range(3):
                    out[x, y, channel] = image[y, x, channel]
    return out


@compiled
def _weighted_rows(image: np.ndarray, starts: np.ndarray, counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """uint8 [N, M, 3] -> [len(starts), M, 3]: row i is the weighted sum of `counts[i]` rows from `starts[i]`."""
    lines = image.reshape(image.shape[0], -1)
    out = np.empty((len(starts), lines.shape[1]), np.uint8)
    sums = np.empty(lines.shape[1], np.int32)
    for i in range(len(starts)):
        sums[:] = 1 << (FRACTION_BITS - 1)  # rounds to the nearest
        for j in range(counts[i]):
            weight, line = weights[i, j], lines[starts[i] + j]
            for k in range(len(sums)):
                sums[k] += np.int32(line[k]) * weight
        for k in range(len(sums)):
            out[i, k] = min(max(sums[k] >> FRACTION_BITS, 0), 255)
    return out.reshape(len(starts), image.shape[1], 3)


@compiled
def shift_rows(image: np.ndarray, shifts: np.ndarray, fill: tuple[int, int, int]) -> np.ndarray:
    """Row y of the output shows the input `shifts[y]` pixels further right: a shear or translation in x.

    Equal to PIL's `transform(size, AFFINE, (1, b, c, 0, 1, 0), BICUBIC, fillcolor=fill)` with shifts b (y + 0.5) + c.

    Args:
        image: uint8 [H, W, 3].
        shifts: float64 [H], pixels.
        fill: The color of pixels from outside the input.

    Returns:
        uint8 [H, W, 3].
    """
    height, width = image.shape[:2]
    out = np.empty((height, width, 3), np.uint8)
    # A row by channels, with the pixels at its ends repeated as often as the filter looks beyond them.
    line = np.empty((3, width + 4))
    parts = np.empty(width)
    values = np.empty((3, width), np.uint8)
    for y in range(height):
        shift, whole = shifts[y], math.floor(shifts[y])
        first = min(max(math.ceil(-0.5 - shift), 0), width)
        last = min(max(math.ceil(width - 0.5 - shift), first), width)
        for x in range(-2, width + 2):
            for channel in range(3):
                line[channel, x + 2] = image[y, min(max(x, 0), width - 1), channel]
        for x in range(first, last):
            parts[x] = x + 0.5 + shift - 0.5 - (x + whole)  # rounded as in PIL, hence not shift - whole
        for channel in range(3):
            shifted = line[channel, 1 + whole + first :]
            for i in range(last - first):
                t = parts[first + i]
                p, q, r, s = shifted[i], shifted[i + 1], shifted[i + 2], shifted[i + 3]
                # Cubic with the slopes r - p and s - q at the ends (a = -1 in Keys' terms).
                value = q + t * (r - p + t * (2.0 * (p - q) + r - s + t * (q - p + s - r)))
                values[channel, first + i] = np.int32(min(max(value, 0.0), 255.0))
        for x in range(width):
            for channel in range(3):
                out[y, x, channel] = values[channel, x] if first <= x < last else fill[channel]
    return out


@compiled
def look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Returns `table[image]` for uint8 arrays [H, W, 3] and [256], which takes NumPy ten times as long."""
    height, width = image.shape[:2]
    out = np.empty((height, width, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            for channel in range(3):
                out[y, x, channel] = table[image[y, x, channel]]
    return out
