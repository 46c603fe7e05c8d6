"""GSA's attention as kernels: a program attends from a tile of queries of one head, to all keys, tile by tile.

The kernels read the projections' outputs without a copy and keep no scores. They compute the running softmax of
FlashAttention-2 (arXiv 2307.08691). Beside the arguments and the result, the backward pass needs two numbers a query:
the maximum of its scores and the sum of their exponentials. Their log-sum-exp alone would do, and rounds more: its
weights differ from those that made the result, so the gradients of a query's scores miss their sum of 0.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from twins_jax.ops.pallas.kernel_call import COMPILER_PARAMS, TILE, Arrays, Ref, call, dot, positions

# NumPy's scalars: beside slices, the interpreter knows no others.
KEY, VALUE = np.arange(2, dtype=np.int32)
MAXIMUM, TOTAL = np.arange(2, dtype=np.int32)

QUERIES_PER_KEY = 16
"""Queries that one program of the keys' gradients sums over, for each key. Its partial sums are float32 [M, 2 * C]: for
bfloat16 they add a quarter to the memory of the queries' gradients. At 224x224 only the first stage has several."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def gsa(query: jax.Array, key_value: jax.Array, num_heads: int) -> jax.Array:
    """Attention of each query to all keys.

    Args:
        query: [B, N, C], head by head; float32, bfloat16 or float16.
        key_value: [B, M, 2 * C], key and value, each head by head, in the dtype of `query`.
        num_heads: heads of C / num_heads channels, as `choose` allows.

    Returns:
        [B, N, C] in the dtype of `query`.
    """
    attended, _ = _forward(query, key_value, num_heads)
    return attended


def _gsa_fwd(query: jax.Array, key_value: jax.Array, num_heads: int) -> tuple[jax.Array, Arrays]:
    attended, statistics = _forward(query, key_value, num_heads)
    return attended, (query, key_value, attended, statistics)


def _gsa_bwd(num_heads: int, saved: Arrays, gradient: jax.Array) -> Arrays:
    return _backward(*saved, gradient, num_heads)


gsa.defvjp(_gsa_fwd, _gsa_bwd)


# Jitted: blocks of one stage share a trace and a function of the lowered program.
@functools.partial(jax.jit, static_argnums=2)
def _forward(query: jax.Array, key_value: jax.Array, num_heads: int) -> tuple[jax.Array, jax.Array]:
    attended, statistics = call(_call_forward, [_by_head(query, 1, num_heads), _by_head(key_value, 2, num_heads)])
    return attended.reshape(query.shape), statistics


@functools.partial(jax.jit, static_argnums=5)
def _backward(
    query: jax.Array,
    key_value: jax.Array,
    attended: jax.Array,
    statistics: jax.Array,
    gradient: jax.Array,
    num_heads: int,
) -> Arrays:
    by_query = [_by_head(x, 1, num_heads) for x in (query, attended, gradient)]
    arguments = [*by_query, statistics, _by_head(key_value, 2, num_heads)]
    partial_sums, *d_query = call(_call_backward, arguments)
    if not d_query:
        d_query = list(call(_call_backward_queries, arguments))
    d_key_value = partial_sums.sum(axis=1).astype(key_value.dtype)
    return d_query[0].reshape(query.shape), d_key_value.reshape(key_value.shape)


def _by_head(x: jax.Array, parts: int, num_heads: int) -> jax.Array:
    """[B, N, parts * C] -> [B, N, parts, heads, d]; the same bytes."""
    return x.reshape(*x.shape[:2], parts, num_heads, -1)


def _call_forward(query: jax.Array, key_value: jax.Array, *, interpret: bool) -> Arrays:
    batch, queries, _, heads, dim = query.shape
    keys = key_value.shape[1]
    out: Arrays = pl.pallas_call(
        functools.partial(_forward_kernel, queries=queries, keys=keys),
        # Heads come first and run beside each other: those of one position share lines of the cache.
        grid=(heads, pl.cdiv(queries, TILE), batch),
        in_specs=[
            pl.BlockSpec((None, TILE, None, None, dim), lambda head, tile, image: (image, tile, 0, head, 0)),
            pl.BlockSpec((None, _up_to_tiles(keys), 2, None, dim), lambda head, _, image: (image, 0, 0, head, 0)),
        ],
        out_specs=(
            pl.BlockSpec((None, TILE, None, None, dim), lambda head, tile, image: (image, tile, 0, head, 0)),
            pl.BlockSpec((None, None, 2, TILE), lambda head, tile, image: (image, head, 0, tile)),
        ),
        out_shape=(
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((batch, heads, 2, queries), jnp.float32),
        ),
        compiler_params=COMPILER_PARAMS,
        interpret=interpret,
        name="gsa_forward",
    )(query, key_value)
    return out


def _call_backward_queries(
    query: jax.Array,
    attended: jax.Array,
    gradient: jax.Array,
    statistics: jax.Array,
    key_value: jax.Array,
    *,
    interpret: bool,
) -> Arrays:
    """The queries' gradients, where the keys fill more than a tile."""
    batch, queries, _, heads, dim = query.shape
    keys = key_value.shape[1]
    by_query = pl.BlockSpec((None, TILE, None, None, dim), lambda head, tile, image: (image, tile, 0, head, 0))
    out: Arrays = pl.pallas_call(
        functools.partial(_backward_queries_kernel, queries=queries, keys=keys),
        grid=(heads, pl.cdiv(queries, TILE), batch),
        in_specs=[
            by_query,
            by_query,
            by_query,
            pl.BlockSpec((None, None, 2, TILE), lambda head, tile, image: (image, head, 0, tile)),
            pl.BlockSpec((None, _up_to_tiles(keys), 2, None, dim), lambda head, _, image: (image, 0, 0, head, 0)),
        ],
        out_specs=(by_query,),
        out_shape=(jax.ShapeDtypeStruct(query.shape, query.dtype),),
        compiler_params=COMPILER_PARAMS,
        interpret=interpret,
        name="gsa_backward_queries",
    )(query, attended, gradient, statistics, key_value)
    return out


def _call_backward(
    query: jax.Array,
    attended: jax.Array,
    gradient: jax.Array,
    statistics: jax.Array,
    key_value: jax.Array,
    *,
    interpret: bool,
) -> Arrays:
    """The keys' and values' gradients, summed over parts of the queries: [B, parts, M, 2, heads, d].

    Where one tile holds all keys, the queries' gradients follow, which then need no sum.
    """
    batch, queries, _, heads, dim = query.shape
    keys = key_value.shape[1]
    part = _up_to_tiles(min(QUERIES_PER_KEY * keys, queries))
    grid = (heads, pl.cdiv(keys, TILE), pl.cdiv(queries, part), batch)
    by_query = pl.BlockSpec((None, part, None, None, dim), lambda head, _, part, image: (image, part, 0, head, 0))
    by_key = pl.BlockSpec(
        (None, None, TILE, 2, None, dim), lambda head, tile, part, image: (image, part, tile, 0, head, 0)
    )
    out_specs = [by_key]
    out_shapes = [jax.ShapeDtypeStruct((batch, grid[2], keys, 2, heads, dim), jnp.float32)]
    if keys <= TILE:
        out_specs.append(by_query)
        out_shapes.append(jax.ShapeDtypeStruct(query.shape, query.dtype))
    out: Arrays = pl.pallas_call(
        functools.partial(_backward_kernel, queries=queries, keys=keys),
        grid=grid,
        in_specs=[
            by_query,
            by_query,
            by_query,
            pl.BlockSpec((None, None, 2, part), lambda head, _, part, image: (image, head, 0, part)),
            pl.BlockSpec((None, TILE, 2, None, dim), lambda head, tile, _, image: (image, tile, 0, head, 0)),
        ],
        out_specs=tuple(out_specs),
        out_shape=tuple(out_shapes),
        compiler_params=COMPILER_PARAMS,
        interpret=interpret,
        name="gsa_backward",
    )(query, attended, gradient, statistics, key_value)
    return out


def _up_to_tiles(size: int) -> int:
    return pl.cdiv(size, TILE) * TILE


def _load_query(ref: Ref, start: jax.Array | int, is_query: jax.Array) -> jax.Array:
    """[TILE, d] from position `start` of [N, d], 0 beyond the last query."""
    return plgpu.load(ref.at[pl.ds(start, TILE), :], mask=is_query[:, None], other=0)


def _load_key_value(ref: Ref, start: jax.Array | int, is_key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two [TILE, d] from position `start` of [M, 2, d], 0 beyond the last key."""
    index = pl.ds(start, TILE)
    key, value = (plgpu.load(ref.at[index, part, :], mask=is_key[:, None], other=0) for part in (KEY, VALUE))
    return key, value


def _scores(query: jax.Array, key: jax.Array, is_key: jax.Array) -> jax.Array:
    scores = dot(query, key, (1, 1)) * query.shape[1] ** -0.5
    return jnp.where(is_key[None, :], scores, -jnp.inf)


def _forward_kernel(
    query_ref: Ref,
    key_value_ref: Ref,
    out_ref: Ref,
    statistics_ref: Ref,
    *,
    queries: int,
    keys: int,
) -> None:
    is_query = positions(pl.program_id(1) * TILE) < queries
    query = _load_query(query_ref, 0, is_query)

    def add_keys(i: jax.Array, carry: Arrays) -> Arrays:
        attended, maximum, total = carry
        is_key = positions(i * TILE) < keys
        key, value = _load_key_value(key_value_ref, i * TILE, is_key)
        scores = _scores(query, key, is_key)
        new_maximum = jnp.maximum(maximum, scores.max(axis=1))
        weights = jnp.exp(scores - new_maximum[:, None])
        shrink = jnp.exp(maximum - new_maximum)
        attended = attended * shrink[:, None] + dot(weights.astype(value.dtype), value, (1, 0))
        return attended, new_maximum, total * shrink + weights.sum(axis=1)

    start = (
        jnp.zeros(query.shape, jnp.float32),
        jnp.full((TILE,), -jnp.inf, jnp.float32),
        jnp.zeros((TILE,), jnp.float32),
    )
    attended, maximum, total = lax.fori_loop(np.int32(0), np.int32(pl.cdiv(keys, TILE)), add_keys, start)
    plgpu.store(out_ref, (attended / total[:, None]).astype(out_ref.dtype), mask=is_query[:, None])
    for which, x in ((MAXIMUM, maximum), (TOTAL, total)):
        plgpu.store(statistics_ref.at[which, :], x, mask=is_query)


class _Queries:
    """A tile of queries as the backward pass needs it, from position `start` of the refs' [N, d]."""

    def __init__(self, refs: tuple[Ref, ...], start: jax.Array | int, is_query: jax.Array) -> None:
        *by_query, statistics_ref = refs
        self.query, attended, self.gradient = (_load_query(ref, start, is_query) for ref in by_query)
        self.maximum, self.total = (
            plgpu.load(statistics_ref.at[which, pl.ds(start, TILE)], mask=is_query, other=1)  # no division by 0
            for which in (MAXIMUM, TOTAL)
        )
        # The mean over the weights of their own gradients: sum_k w_k (g . v_k) = g . sum_k w_k v_k.
        self.mean = (attended.astype(jnp.float32) * self.gradient.astype(jnp.float32)).sum(axis=1)

    def gradients(self, key: jax.Array, value: jax.Array, is_key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The weights [queries, keys], and the gradients of the products query . key; both as operands of a product."""
        weights = jnp.exp(_scores(self.query, key, is_key) - self.maximum[:, None]) / self.total[:, None]
        d_scores = weights * (dot(self.gradient, value, (1, 1)) - self.mean[:, None]) * key.shape[1] ** -0.5
        return weights.astype(value.dtype), d_scores.astype(key.dtype)


def _backward_queries_kernel(
    query_ref: Ref,
    attended_ref: Ref,
    gradient_ref: Ref,
    statistics_ref: Ref,
    key_value_ref: Ref,
    d_query_ref: Ref,
    *,
    queries: int,
    keys: int,
) -> None:
    is_query = positions(pl.program_id(1) * TILE) < queries
    tile = _Queries((query_ref, attended_ref, gradient_ref, statistics_ref), 0, is_query)

    def add_keys(i: jax.Array, d_query: jax.Array) -> jax.Array:
        is_key = positions(i * TILE) < keys
        key, value = _load_key_value(key_value_ref, i * TILE, is_key)
        _, d_scores = tile.gradients(key, value, is_key)
        return d_query + dot(d_scores, key, (1, 0))

    start = jnp.zeros(tile.query.shape, jnp.float32)
    d_query = lax.fori_loop(np.int32(0), np.int32(pl.cdiv(keys, TILE)), add_keys, start)
    plgpu.store(d_query_ref, d_query.astype(d_query_ref.dtype), mask=is_query[:, None])


def _backward_kernel(
    query_ref: Ref,
    attended_ref: Ref,
    gradient_ref: Ref,
    statistics_ref: Ref,
    key_value_ref: Ref,
    d_key_value_ref: Ref,
    d_query_ref: Ref | None = None,
    *,
    queries: int,
    keys: int,
) -> None:
    part = query_ref.shape[0]
    first = pl.program_id(2) * part  # inside a loop the interpreter knows no program_id
    is_key = positions(pl.program_id(1) * TILE) < keys
    key, value = _load_key_value(key_value_ref, 0, is_key)

    def add_queries(i: jax.Array, carry: Arrays) -> Arrays:
        d_key, d_value = carry
        is_query = positions(first + i * TILE) < queries
        tile = _Queries((query_ref, attended_ref, gradient_ref, statistics_ref), i * TILE, is_query)
        weights, d_scores = tile.gradients(key, value, is_key)
        if d_query_ref is not None:
            d_query = dot(d_scores, key, (1, 0)).astype(d_query_ref.dtype)
            plgpu.store(d_query_ref.at[pl.ds(i * TILE, TILE), :], d_query, mask=is_query[:, None])
        return d_key + dot(d_scores, tile.query, (0, 0)), d_value + dot(weights, tile.gradient, (0, 0))

    start = (jnp.zeros(key.shape, jnp.float32), jnp.zeros(key.shape, jnp.float32))
    gradients = lax.fori_loop(np.int32(0), np.int32(part // TILE), add_queries, start)
    for which, x in zip((KEY, VALUE), gradients, strict=True):
        plgpu.store(d_key_value_ref.at[:, which, :], x, mask=is_key[:, None])
