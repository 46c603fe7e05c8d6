"""Maps of another size, with PyTorch's numbers: bilinear, nearest, and averages over a grid of bins."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from twins_jax.ops.numerics import at_least_float32

Length = int | jax.Array
"""A number of positions: static, or int32 [] that is known when the program runs."""


def resize_bilinear(
    x: jax.Array,
    size: tuple[int, int],
    *,
    source: tuple[Length, Length] | None = None,
    target: tuple[Length, Length] | None = None,
    first_row: Length = 0,
) -> jax.Array:
    """Resizes maps bilinearly, without antialiasing: PyTorch's `interpolate(mode="bilinear", align_corners=False)`.

    `source` and `target` serve maps of several sizes within arrays of one shape: the top left part of x of size
    `source` is resized to `target`, and fills the top left part of the result. The rest of the result repeats the last
    row and column of that part of x.

    Args:
        x: [B, h, w, C].
        size: (H, W) of the result.
        source: (height, width) of the part of x; all of x if None.
        target: (height, width) to which it is resized; `size` if None.
        first_row: of `target`, which must be given then, with which the result begins: a part of a large one.

    Returns:
        [B, H, W, C] in the dtype of x. The arithmetic is float32 at least.
    """
    dtype, sizes = x.dtype, (x.shape[1], x.shape[2])
    if sizes == tuple(size) and source is None and target is None:
        return x
    x = x.astype(at_least_float32(dtype))
    for axis, (length, given, wanted) in enumerate(zip(size, source or sizes, target or size, strict=True), start=1):
        x = _interpolate(x, axis, length, given, wanted, first_row if axis == 1 else 0)
    return x.astype(dtype)


def _interpolate(x: jax.Array, axis: int, length: int, source: Length, target: Length, first: Length) -> jax.Array:
    """Resizes one axis of x to `length` positions, of which the first is number `first` of `target`."""
    if not (isinstance(source, int) and isinstance(target, int)):
        return _blend(x, axis, *_neighbors(first + jnp.arange(length), source, target, jnp, x.dtype))
    if isinstance(first, int):
        return _interpolate_static(x, axis, _neighbors(first + np.arange(length), source, target, np, np.float64))
    every = bilinear_neighbors(source, target)
    return _blend(x, axis, *(jnp.take(values, first + jnp.arange(length), mode="clip") for values in every))


def _interpolate_static(x: jax.Array, axis: int, neighbors: tuple[np.ndarray, np.ndarray, np.ndarray]) -> jax.Array:
    """Resizes one axis of x by `neighbors` that the host knows, with a derivative whose transpose only reads.

    Reading two neighbors has a derivative whose transpose, the one that reverse mode computes, adds to two neighbors,
    one position after the other: 310 ms for logits of 150 classes at 512x512 (`xla_cpu` names the machine). Few
    positions of the result read one of x. The derivative here adds to the first of them, then to the second, and so on;
    its transpose reads them in turn and takes 63 ms.
    """

    @jax.custom_jvp
    def resized(x: jax.Array) -> jax.Array:
        return _blend(x, axis, *neighbors)

    @resized.defjvp
    def _resized_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
        (x,), (tangent,) = primals, tangents
        total = jnp.zeros((*x.shape[:axis], len(neighbors[0]), *x.shape[axis + 1 :]), x.dtype)
        for readers, weight in _readers(_matrix(x.shape[axis], *neighbors)):
            total = total.at[(slice(None),) * axis + (readers,)].add(tangent * _along(weight, axis, x), mode="clip")
        return resized(x), total

    return resized(x)


def bilinear_neighbors(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the arithmetic of `resize_bilinear` along an axis: result i is (1 - w[i]) x[low[i]] + w[i] x[high[i]].

    Args:
        source: positions of x.
        target: positions of the result.

    Returns:
        low and high, int32 [target], and w, float64 [target].
    """
    return _neighbors(np.arange(target), source, target, np, np.float64)


def bilinear_weights(source: int, target: int) -> np.ndarray:
    """Returns the matrix [target, source] in float64 that resizes an axis as `resize_bilinear` does."""
    return _matrix(source, *bilinear_neighbors(source, target))


def _neighbors(places: Any, source: Length, target: Length, xp: Any, real: DTypeLike) -> tuple[Any, Any, Any]:
    """The two positions that each of `places` [n] in the result is between, and the weight of the second: [n] each."""
    scale = xp.asarray(source, real) / xp.asarray(target, real)
    position = xp.maximum((places.astype(real) + 0.5) * scale - 0.5, 0)
    last = xp.asarray(source, np.int32) - 1
    low = xp.minimum(position.astype(np.int32), last)
    return low, xp.minimum(low + 1, last), xp.clip(position - low.astype(real), 0, 1)


def _blend(x: jax.Array, axis: int, low: Any, high: Any, weight: Any) -> jax.Array:
    below, above = (jnp.take(x, index, axis=axis, mode="clip") for index in (low, high))
    weight = _along(weight, axis, x)
    return below * (1 - weight) + above * weight


def _along(values: Any, axis: int, x: jax.Array) -> Any:
    """Gives values of positions along an axis of x the dtype and the rank of x."""
    return values.reshape((1,) * axis + (-1,) + (1,) * (x.ndim - axis - 1)).astype(x.dtype)


def _matrix(source: int, low: np.ndarray, high: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The weights [length, source] by which neighbors of `source` positions are blended."""
    rows, weights = np.arange(len(low)), np.zeros((len(low), source))
    np.add.at(weights, (rows, low), 1 - weight)
    np.add.at(weights, (rows, high), weight)
    return weights


def _readers(weights: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields, for all columns of `weights` [length, source], the first row that is not 0, the second and so on.

    The values [source] in these rows come with them: 0 for a column that has no further row.
    """
    order = np.argsort(weights == 0, axis=0, kind="stable")
    for rows in order[: (weights != 0).sum(axis=0).max()]:
        yield rows, weights[rows, np.arange(weights.shape[1])]


def resize_nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes maps to the nearest position: PyTorch's `interpolate(mode="nearest")`, which reads floor(i * in / out).

    `jax.image.resize` rounds to another position where the ratio is no integer. PyTorch itself rounds in / out, and
    reads another position than floor(i * in / out) for 15 of the 4,096 pairs of sides up to 64, such as 30 -> 58; for
    none of the pyramids', 2 in and 2 in + 1 (all `in` below 1,500 tried, torch 2.13).

    Args:
        x: [B, h, w, C].
        size: (H, W) of the result.

    Returns:
        [B, H, W, C] in the dtype of x.
    """
    for axis, (given, wanted) in enumerate(zip(x.shape[1:3], size, strict=True), start=1):
        if given != wanted:
            x = jnp.take(x, np.arange(wanted) * given // wanted, axis=axis)
    return x


def adaptive_average_pool(x: jax.Array, bins: int) -> jax.Array:
    """Averages a map over a grid of bins: PyTorch's `adaptive_avg_pool2d`.

    Of n positions bin i of s covers those from floor(i n / s) to ceil((i + 1) n / s): bins overlap where s does not
    divide n, and repeat where n < s.

    Args:
        x: [B, H, W, C].
        bins: s, both ways.

    Returns:
        [B, s, s, C] in the dtype of x. The sums are float32 at least.
    """
    wide = x.astype(at_least_float32(x.dtype))
    for axis in (1, 2):
        positions = x.shape[axis]
        ends = [(i * positions // bins, -(-(i + 1) * positions // bins)) for i in range(bins)]
        parts = [
            jax.lax.slice_in_dim(wide, begin, end, axis=axis).mean(axis=axis, keepdims=True) for begin, end in ends
        ]
        wide = jnp.concatenate(parts, axis=axis)
    return wide.astype(x.dtype)
