"""RoIAlign (arXiv 1703.06870, section 3): features within boxes, averaged over a grid of bins.

The rule is that of mmcv's `roi_align` with `aligned=True` and `sampling_ratio=0`, which mmdet's Mask R-CNN takes. A box
of h x w cells on P x P bins is sampled at ceil(h / P) x ceil(w / P) points of each bin, spread evenly. A sample is the
bilinear value at its point; one farther than a cell from the map is 0; a bin's value is the mean of its samples.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from twins_jax import ops
from twins_jax.errors import require

FINEST_SIZE = 56.0
"""Boxes whose sides have a geometric mean of less than twice this many pixels go to the finest map."""

LEVELS = 4
"""Maps that boxes are distributed over: P2 to P5."""

STRIDES = (4, 8, 16, 32)
"""Their strides in pixels."""

CHUNK_ELEMENTS = 2**22
"""Numbers of each image in the largest intermediate array, [B, n, P, w, C], which decides n, the boxes in a chunk."""


def roi_levels(boxes: jax.Array) -> jax.Array:
    """Returns the map that each box is read from: clip(floor(log2(sqrt(w h) / 56 + 1e-6)), 0, 3).

    The powers of two are compared with, since a rounded logarithm could miss them.

    Args:
        boxes: [..., 4] as x1, y1, x2, y2 in pixels.

    Returns:
        int32 [...], 0 for the finest. It is 0 for boxes without area.
    """
    sides = boxes[..., 2:] - boxes[..., :2]
    scale = jnp.sqrt(sides[..., 0] * sides[..., 1]) / FINEST_SIZE + 1e-6
    return sum(((scale >= 2**level).astype(jnp.int32) for level in range(1, LEVELS)), jnp.zeros(scale.shape, jnp.int32))


def roi_align(features: jax.Array, boxes: jax.Array, *, output_size: int, scale: float) -> jax.Array:
    """Averages a map over the bins of boxes, as `pyramid_roi_align` does.

    Args:
        features: [H, W, C].
        boxes: [N, 4] as x1, y1, x2, y2 in pixels.
        output_size: P, bins both ways.
        scale: cells of the map in a pixel: 1 / stride.

    Returns:
        [N, P, P, C] in the dtype of the features. It is 0 for boxes without area.
    """
    levels = jnp.zeros((1, boxes.shape[0]), jnp.int32)
    return _pooled((features[None],), boxes[None], levels, output_size, (scale,))[0]


def pyramid_roi_align(
    levels: Sequence[jax.Array], boxes: jax.Array, *, output_size: int, strides: Sequence[int] = STRIDES
) -> jax.Array:
    """Averages, over the bins of boxes, each from the map that `roi_levels` gives (mmdet's `SingleRoIExtractor`).

    The mean over a bin is linear in the features and separable: each box has one matrix of weights [P, h] and one
    [P, w]. They multiply the whole map. Boxes are computed map by map, in chunks; `CHUNK_ELEMENTS` bounds the
    memory, whatever the number and the shapes of boxes. Each image's boxes meet its own maps alone: a batch can be
    split over devices.

    The other formulation reads the four neighbors of each sample. It takes as many rounds as the box with the most
    samples has in a bin, and its transpose adds to scattered positions. For 512 boxes on the maps of one image of
    256x256, of 256 channels, values took 115 ms of processor time by products and 226 ms by reading; with the
    gradient 269 and 1,526 ms, in 32 and 109 MB. On one of 800x1344 they were 1,027 and 528 ms, with the gradient 2,225
    and 2,371 ms, in 83 and 183 MB (jaxlib 0.10.2, AMD EPYC, one run each).

    Derivatives go to the features alone: boxes count as constants. Only reverse mode is defined.

    Args:
        levels: maps [B, h, w, C] of the strides, fine to coarse.
        boxes: [B, N, 4] as x1, y1, x2, y2 in pixels of the images.
        output_size: P, bins both ways.
        strides: of the maps in pixels.

    Returns:
        [B, N, P, P, C] in the dtype of the maps. The products are of float32 at least, in the precision of
        `jax.default_matmul_precision`. It is 0 for boxes without area.

    Raises:
        InputError: (a ValueError) the maps are not as many as the strides.
    """
    require("levels", len(levels), len(levels) == len(strides), f"as many maps as strides, {len(strides)}")
    return _pooled(tuple(levels), boxes, roi_levels(boxes), output_size, tuple(1 / stride for stride in strides))


def bin_weights(start: jax.Array, length: jax.Array, bins: int, size: int) -> jax.Array:
    """Returns the weight of each cell of an axis in the mean over each bin.

    Samples are more than half a cell apart where a bin has several. Hence at most four are less than a cell from one
    cell, and those are found without a loop over all samples of the largest box.

    Args:
        start: [...], where boxes begin, in cells: 0 is the center of the first one.
        length: [...], of the boxes in cells.
        bins: P, of each box.
        size: cells of the axis.

    Returns:
        [..., P, size]; 0 where a length is not positive.
    """
    shape = (*length.shape, bins, size)
    start, length = (lax.broadcast_in_dim(x, shape, range(x.ndim)) for x in (start, length))
    bin_index, cell = (lax.broadcasted_iota(length.dtype, shape, len(shape) - axis) for axis in (2, 1))
    # ceil(length / bins) of a rounded quotient: 42 * (1 / 7), as compiled programs divide, is 6.0000005 in float32.
    nearest = jnp.round(length / bins)
    given = jnp.where(length > nearest * bins, nearest + 1, nearest)
    count = jnp.maximum(given, 1)
    step = length / (count * bins)
    # One sample earlier than the first that the cell can need, since quotients are rounded.
    first = jnp.floor((cell - 1 - start) / step - bin_index * count - 0.5)
    first = jnp.where(count > 1, jnp.clip(first, 0, count), 0)
    total = jnp.zeros_like(length)
    for i in range(5):
        position = start + (bin_index * count + first + i + 0.5) * step
        is_sample = (first + i < given) & (position >= -1) & (position <= size)
        distance = jnp.abs(jnp.clip(position, 0, size - 1) - cell)
        total += jnp.where(is_sample, jnp.maximum(1 - distance, 0), 0)
    return total / count


def _pooled(
    maps: tuple[jax.Array, ...], boxes: jax.Array, level_of: jax.Array, bins: int, scales: tuple[float, ...]
) -> jax.Array:
    """Returns [B, N, P, P, C] of `maps` [B, h, w, C], boxes [B, N, 4] and the map of each box, int32 [B, N]."""
    shapes, dtype = [x.shape for x in maps], maps[0].dtype
    wide = ops.at_least_float32(dtype)
    result_shape = (*level_of.shape, bins, bins, shapes[0][-1])
    if 0 in result_shape:
        return jnp.zeros(result_shape, dtype)

    @jax.custom_vjp
    def pooled(maps: tuple[jax.Array, ...], boxes: jax.Array, level_of: jax.Array) -> jax.Array:
        result = jnp.zeros(result_shape, wide)
        for level, (x, scale) in enumerate(zip(maps, scales, strict=True)):
            result = _add_level(result, x.astype(wide), boxes, level_of == level, scale)
        return result.astype(dtype)

    def forward(
        maps: tuple[jax.Array, ...], boxes: jax.Array, level_of: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return pooled(maps, boxes, level_of), (boxes, level_of)

    def backward(saved: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[tuple[jax.Array, ...], None, None]:
        boxes, level_of = saved
        gradients = (
            _level_gradient(cotangent.astype(wide), shape, boxes, level_of == level, scale).astype(dtype)
            for level, (shape, scale) in enumerate(zip(shapes, scales, strict=True))
        )
        return tuple(gradients), None, None

    pooled.defvjp(forward, backward)
    return pooled(maps, boxes, level_of)


def _add_level(result: jax.Array, x: jax.Array, boxes: jax.Array, is_here: jax.Array, scale: float) -> jax.Array:
    """Sets the rows of `result` [B, N, P, P, C] for the boxes that are on a map, by its values x [B, h, w, C]."""
    rows, used = _chunks(is_here, x.shape, result.shape[2])

    batch, height, width, channels = x.shape
    lines = x.reshape(batch, height, width * channels)

    def add_chunk(i: jax.Array, result: jax.Array) -> jax.Array:
        row = lax.dynamic_index_in_dim(rows, i, axis=1, keepdims=False)
        vertical, horizontal = _weights(_take(boxes, row), x.shape, x.dtype, result.shape[2], scale)
        values = jnp.matmul(horizontal, jnp.matmul(vertical, lines).reshape(-1, width, channels))
        values = values.reshape(*row.shape, *result.shape[2:])
        return jax.vmap(lambda r, i, v: r.at[i].set(v, mode="drop"))(result, row, values)

    return lax.fori_loop(0, used, add_chunk, result)


def _level_gradient(
    cotangent: jax.Array, shape: tuple[int, ...], boxes: jax.Array, is_here: jax.Array, scale: float
) -> jax.Array:
    """Returns the gradient [B, h, w, C] of a map: the transpose of `_add_level`."""
    bins = cotangent.shape[2]
    rows, used = _chunks(is_here, shape, bins)
    batch, height, width, channels = shape

    def add_chunk(i: jax.Array, gradient: jax.Array) -> jax.Array:
        row = lax.dynamic_index_in_dim(rows, i, axis=1, keepdims=False)
        vertical, horizontal = _weights(_take(boxes, row), shape, cotangent.dtype, bins, scale)
        values = _take(cotangent, row).reshape(-1, bins, channels)
        lines = jnp.matmul(horizontal.mT, values).reshape(batch, -1, width * channels)
        return gradient + jnp.matmul(vertical.mT, lines)

    lines = jnp.zeros((batch, height, width * channels), cotangent.dtype)
    return lax.fori_loop(0, used, add_chunk, lines).reshape(shape)


def _chunks(is_here: jax.Array, shape: tuple[int, ...], bins: int) -> tuple[jax.Array, jax.Array]:
    """Distributes the boxes of a map over chunks of n.

    Args:
        is_here: bool [B, N], True for the boxes on the map.
        shape: of the map, (B, h, w, C).
        bins: P.

    Returns:
        The index of each box, int32 [B, chunks, n], N beyond an image's last one; and the number of chunks in use,
        which the image with the most boxes sets.
    """
    batch, number = is_here.shape
    size = min(max(CHUNK_ELEMENTS // (bins * shape[2] * shape[3]), 1), number)
    order = jnp.argsort(~is_here, axis=1, stable=True)
    counts = is_here.sum(axis=1, dtype=jnp.int32, keepdims=True)
    row = jnp.where(lax.broadcasted_iota(jnp.int32, order.shape, 1) < counts, order, number)
    row = jnp.pad(row, ((0, 0), (0, -number % size)), constant_values=number)
    return row.reshape(batch, -1, size), -(-counts.max() // size)


def _weights(
    boxes: jax.Array, shape: tuple[int, ...], dtype: DTypeLike, bins: int, scale: float
) -> tuple[jax.Array, jax.Array]:
    """The weights of boxes [B, n, 4] on a map (B, h, w, C) by axis: [B, n P, h] and [B n P, P, w].

    The second repeats those of a box for each of its P rows of bins, which gives each product one batch axis: `einsum`
    with two of them took 1.6 times as long.
    """
    batch, number = boxes.shape[:2]
    x1, y1, x2, y2 = jnp.moveaxis(boxes.astype(dtype) * scale - 0.5, -1, 0)
    vertical = bin_weights(y1, y2 - y1, bins, shape[1]).reshape(batch, number * bins, shape[1])
    horizontal = bin_weights(x1, x2 - x1, bins, shape[2]).reshape(batch * number, 1, bins, shape[2])
    repeated = jnp.broadcast_to(horizontal, (batch * number, bins, bins, shape[2]))
    return vertical, repeated.reshape(batch * number * bins, bins, shape[2])


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    """Returns the rows `index` [B, n] of x [B, N, ...]; 0 for an index of N."""
    return jax.vmap(lambda x, i: x.at[i].get(mode="fill", fill_value=0))(x, index)
