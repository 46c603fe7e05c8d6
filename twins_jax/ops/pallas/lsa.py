"""LSA's attention as one kernel each way: a program attends within one window and head.

The kernels read the projection's map and write a map: their indices alone move windows and heads, and only the result
goes to memory. The backward pass computes the scores again from query, key and value, which are stored anyway.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from twins_jax.ops.pallas.kernel_call import COMPILER_PARAMS, Arrays, Ref, call, dot, positions

QUERY, KEY, VALUE = range(3)


@dataclasses.dataclass(frozen=True)
class Windows:
    """The windows of a map.

    Attributes:
        height: of the map.
        width: of the map.
        size: side of the windows; the last ones reach beyond a map that they do not tile.
        see_padding: True if the positions beyond the map are keys.
    """

    height: int
    width: int
    size: int
    see_padding: bool

    @property
    def rows_and_columns(self) -> tuple[int, int]:
        """Numbers of windows."""
        return pl.cdiv(self.height, self.size), pl.cdiv(self.width, self.size)

    @property
    def has_padding_keys(self) -> bool:
        """True if some window has keys beyond the map."""
        return self.see_padding and bool(self.height % self.size or self.width % self.size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def lsa(qkv: jax.Array, padding: jax.Array, num_heads: int, windows: Windows) -> jax.Array:
    """Attention of each position to its own window.

    Positions beyond the map all have the key and value of `padding`: the projection of zeros, where the map is padded
    with zeros before the projection.

    Args:
        qkv: [B, H, W, 3 * C]: query, key and value, each head by head; float32, bfloat16 or float16.
        padding: [3 * C], query, key and value of a position beyond the map, in the dtype of `qkv`.
        num_heads: heads of C / num_heads channels, as `choose` allows.
        windows: of this H and W, and of a size that `choose` allows.

    Returns:
        [B, H, W, C] in the dtype of `qkv`.
    """
    return _forward(qkv, padding, num_heads, windows)


def _lsa_fwd(qkv: jax.Array, padding: jax.Array, num_heads: int, windows: Windows) -> tuple[jax.Array, Arrays]:
    return _forward(qkv, padding, num_heads, windows), (qkv, padding)


def _lsa_bwd(num_heads: int, windows: Windows, saved: Arrays, gradient: jax.Array) -> Arrays:
    return _backward(*saved, gradient, num_heads, windows)


lsa.defvjp(_lsa_fwd, _lsa_bwd)


# Jitted: blocks of one stage share a trace and a function of the lowered program.
@functools.partial(jax.jit, static_argnums=(2, 3))
def _forward(qkv: jax.Array, padding: jax.Array, num_heads: int, windows: Windows) -> jax.Array:
    qkv, padding = _by_head(qkv, 3, num_heads), padding.reshape(3, num_heads, -1)
    (attended,) = call(functools.partial(_call_forward, windows=windows), [qkv], [padding])
    return attended.reshape(*attended.shape[:3], -1)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _backward(qkv: jax.Array, padding: jax.Array, gradient: jax.Array, num_heads: int, windows: Windows) -> Arrays:
    arguments = [_by_head(qkv, 3, num_heads), _by_head(gradient, 1, num_heads)]
    kernel = functools.partial(_call_backward, windows=windows)
    d_qkv, *d_by_window = call(kernel, arguments, [padding.reshape(3, num_heads, -1)])
    d_padding = jnp.zeros(padding.shape, jnp.float32)
    if d_by_window:  # [B, rows, columns, 2, heads, d]; padding's queries have no gradient
        d_padding = d_padding.at[padding.size // 3 :].set(d_by_window[0].sum((0, 1, 2)).ravel())
    return d_qkv.reshape(qkv.shape), d_padding.astype(padding.dtype)


def _by_head(x: jax.Array, parts: int, num_heads: int) -> jax.Array:
    """[B, H, W, parts * C] -> [B, H, W, parts, heads, d]; the same bytes."""
    return x.reshape(*x.shape[:3], parts, num_heads, -1)


def _specs(qkv: jax.Array, windows: Windows) -> tuple[tuple[int, ...], dict[str, pl.BlockSpec]]:
    """The grid of programs, and the block of each array that one of them reads or writes."""
    batch, *_, heads, dim = qkv.shape
    rows, columns = windows.rows_and_columns
    # Heads come first and run beside each other: those of one position share lines of the cache.
    grid = (heads, columns, rows, batch)

    def window(parts: int) -> pl.BlockSpec:
        shape = (None, windows.size, windows.size, parts, None, dim)
        return pl.BlockSpec(shape, lambda head, column, row, image: (image, row, column, 0, head, 0))

    return grid, {
        "qkv": window(3),
        "attended": window(1),
        "padding": pl.BlockSpec((3, None, dim), lambda head, *_: (0, head, 0)),
        "gradients of padding": pl.BlockSpec(
            (None, None, None, 2, None, dim), lambda head, column, row, image: (image, row, column, 0, head, 0)
        ),
    }


def _call_forward(qkv: jax.Array, padding: jax.Array, *, windows: Windows, interpret: bool) -> Arrays:
    grid, specs = _specs(qkv, windows)
    out: Arrays = pl.pallas_call(
        functools.partial(_forward_kernel, windows=windows),
        grid=grid,
        in_specs=[specs["qkv"], specs["padding"]],
        out_specs=(specs["attended"],),
        out_shape=(jax.ShapeDtypeStruct((*qkv.shape[:3], 1, *qkv.shape[4:]), qkv.dtype),),
        compiler_params=COMPILER_PARAMS,
        interpret=interpret,
        name="lsa_forward",
    )(qkv, padding)
    return out


def _call_backward(
    qkv: jax.Array, gradient: jax.Array, padding: jax.Array, *, windows: Windows, interpret: bool
) -> Arrays:
    grid, specs = _specs(qkv, windows)
    out_specs, out_shapes = [specs["qkv"]], [jax.ShapeDtypeStruct(qkv.shape, qkv.dtype)]
    if windows.has_padding_keys:
        shape = (qkv.shape[0], *windows.rows_and_columns, 2, *qkv.shape[4:])
        out_specs.append(specs["gradients of padding"])
        out_shapes.append(jax.ShapeDtypeStruct(shape, jnp.float32))
    out: Arrays = pl.pallas_call(
        functools.partial(_backward_kernel, windows=windows),
        grid=grid,
        in_specs=[specs["qkv"], specs["attended"], specs["padding"]],
        out_specs=tuple(out_specs),
        out_shape=tuple(out_shapes),
        compiler_params=COMPILER_PARAMS,
        interpret=interpret,
        name="lsa_backward",
    )(qkv, gradient, padding)
    return out


class _Tile:
    """The positions of this program's window: `size` * `size` of the tile's, row by row."""

    def __init__(self, windows: Windows) -> None:
        self.row, self.column = (part(positions(), jnp.int32(windows.size)) for part in (lax.div, lax.rem))
        top, left = (pl.program_id(axis) * windows.size for axis in (2, 1))
        in_window = positions() < windows.size**2
        self.in_map = in_window & (top + self.row < windows.height) & (left + self.column < windows.width)
        self.is_key = in_window if windows.see_padding else self.in_map
        self.is_padding = self.is_key & ~self.in_map

    def _index(self, part: int, ref: Ref) -> tuple[jax.Array | int, ...]:
        # Positions beyond the window have a row beyond it too, which no masked access touches.
        return self.row[:, None], self.column[:, None], part, lax.iota(jnp.int32, ref.shape[-1])[None, :]

    def load(self, ref: Ref, part: int) -> jax.Array:
        """[TILE, d], 0 beyond the map."""
        return plgpu.load(ref.at[self._index(part, ref)], mask=self.in_map[:, None], other=0)

    def store(self, ref: Ref, part: int, values: jax.Array) -> None:
        """Stores the positions of the map."""
        plgpu.store(ref.at[self._index(part, ref)], values.astype(ref.dtype), mask=self.in_map[:, None])


def _attend(qkv_ref: Ref, padding_ref: Ref, tile: _Tile, windows: Windows) -> Arrays:
    """Returns query, key and value [TILE, d], the keys' undivided weights [TILE, TILE], and their sums [TILE, 1]."""
    query, key, value = (tile.load(qkv_ref, part) for part in (QUERY, KEY, VALUE))
    if windows.has_padding_keys:
        key, value = (
            jnp.where(tile.is_padding[:, None], padding_ref[part, :][None, :], x)
            for part, x in ((KEY, key), (VALUE, value))
        )
    scores = dot(query, key, (1, 1)) * query.shape[1] ** -0.5
    scores = jnp.where(tile.is_key[None, :], scores, -jnp.inf)
    weights = jnp.exp(scores - scores.max(axis=1, keepdims=True))
    return query, key, value, weights, weights.sum(axis=1, keepdims=True)


def _forward_kernel(qkv_ref: Ref, padding_ref: Ref, out_ref: Ref, *, windows: Windows) -> None:
    tile = _Tile(windows)
    _, _, value, weights, total = _attend(qkv_ref, padding_ref, tile, windows)
    tile.store(out_ref, 0, dot(weights.astype(value.dtype), value, (1, 0)) / total)


def _backward_kernel(
    qkv_ref: Ref,
    gradient_ref: Ref,
    padding_ref: Ref,
    d_qkv_ref: Ref,
    d_by_window_ref: Ref | None = None,
    *,
    windows: Windows,
) -> None:
    tile = _Tile(windows)
    query, key, value, weights, total = _attend(qkv_ref, padding_ref, tile, windows)
    gradient = tile.load(gradient_ref, 0)
    weights = weights / total
    d_value = dot(weights.astype(value.dtype), gradient, (0, 0))
    d_weights = dot(gradient, value, (1, 1))
    d_scores = weights * (d_weights - (weights * d_weights).sum(axis=1, keepdims=True)) * query.shape[1] ** -0.5
    d_scores = d_scores.astype(query.dtype)
    d_key = dot(d_scores, query, (0, 0))
    tile.store(d_qkv_ref, QUERY, dot(d_scores, key, (1, 0)))
    tile.store(d_qkv_ref, KEY, d_key)
    tile.store(d_qkv_ref, VALUE, d_value)
    if d_by_window_ref is not None:
        for i, x in enumerate((d_key, d_value)):
            d_by_window_ref[i, :] = jnp.where(tile.is_padding[:, None], x, 0).sum(axis=0)
