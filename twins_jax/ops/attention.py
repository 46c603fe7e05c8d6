"""Multi-head attention of the positions of one map to those of another."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from twins_jax.config import AttentionImplementation
from twins_jax.ops.dispatch import Implementation, choose, queries_at_once
from twins_jax.ops.numerics import at_least_float32


def attention(
    query: jax.Array, key_value: jax.Array, num_heads: int, implementation: AttentionImplementation = "auto"
) -> jax.Array:
    """Attention of every position of a map to every position of another: softmax(q k^T / sqrt(d)) v for each head.

    "xla" computes the scores of large maps for a block of queries at a time, see `attention_in_blocks`.

    Args:
        query: [B, H, W, C], head by head.
        key_value: [B, h, w, 2 C]: keys, then values, each head by head.
        num_heads: heads of d = C / num_heads channels.
        implementation: as in `TwinsConfig`.

    Returns:
        [B, H, W, C] in the dtype of the values; B may be 0.

    Raises:
        InputError: the implementation does not apply (see `dispatch.choose`).
    """
    batch, *_, dim = query.shape
    chosen = choose(implementation, query.dtype, dim // num_heads)
    if batch == 0:
        chosen = "xla"  # a kernel needs programs to run
    if chosen == "pallas":
        from twins_jax.ops import pallas

        return pallas.attention(query, key_value, num_heads)

    key, value = (_split_heads(part, num_heads) for part in jnp.split(key_value, 2, axis=-1))
    queries = _split_heads(query, num_heads)
    size = queries_at_once(queries.shape[1], key.shape[1], num_heads, query.dtype)
    if chosen == "xla" and size < queries.shape[1]:
        in_blocks = attention_in_blocks if isinstance(query, jax.core.Tracer) else compiled_attention_in_blocks
        attended = in_blocks(queries, key, value, size)
    else:
        attended = softmax_attention(queries, key, value, implementation=chosen)
    return attended.reshape(query.shape)


def attention_weights(query: jax.Array, key_value: jax.Array, num_heads: int) -> jax.Array:
    """The weights that `attention` gives the values: [B, heads, H, W, h, w], in float32 at least."""
    key = jnp.split(key_value, 2, axis=-1)[0]
    weights = softmax_weights(_split_heads(query, num_heads), _split_heads(key, num_heads))
    return weights.reshape(*weights.shape[:2], *query.shape[1:3], *key_value.shape[1:3])


def attention_in_blocks(query: jax.Array, key: jax.Array, value: jax.Array, size: int) -> jax.Array:
    """`softmax_attention` for `size` queries at a time, whose scores alone are in memory (Rabe and Staats, 2021).

    Each block has the exact softmax over all keys. The backward pass computes its scores again. The paper divides the
    keys, too, which GSA's few keys do not need.

    Args:
        query: [B, Q, heads, d].
        key: [B, K, heads, d].
        value: [B, K, heads, d].
        size: queries in a block. The last one is filled up with zeros, and what they attend to is cut off.

    Returns:
        [B, Q, heads, d] in the dtype of `value`.
    """
    batch, queries, heads, dim = query.shape
    count = -(-queries // size)
    blocks = jnp.pad(query, ((0, 0), (0, count * size - queries), (0, 0), (0, 0)))
    blocks = jnp.moveaxis(blocks.reshape(batch, count, size, heads, dim), 1, 0)
    # The backward pass sums the gradients of keys and values over blocks in the dtype that the loop sees.
    wide_key, wide_value = (x.astype(at_least_float32(x.dtype)) for x in (key, value))

    @partial(jax.checkpoint, prevent_cse=False)  # a loop's body needs no protection from common subexpressions
    def attend(block: jax.Array) -> jax.Array:
        return softmax_attention(block, wide_key.astype(key.dtype), wide_value.astype(value.dtype))

    attended = jnp.moveaxis(lax.map(attend, blocks), 0, 1).reshape(batch, count * size, heads, dim)
    return lax.slice_in_dim(attended, 0, queries, axis=1)


compiled_attention_in_blocks = jax.jit(attention_in_blocks, static_argnames="size")
"""For calls outside of `jit`, each of which would compile the loop anew.

Within a trace the function itself is called: jax2onnx puts functions of its own into `jax.numpy` while it traces, and
the cache of this one would keep them.
"""


def softmax_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    *,
    implementation: Implementation = "xla",
) -> jax.Array:
    """softmax(query key^T / sqrt(d) + bias) value, with scores and softmax in float32 at least.

    Args:
        query: [..., Q, heads, d].
        key: [..., K, heads, d].
        value: [..., K, heads, d].
        bias: float32, added to the scores; broadcast against [..., heads, Q, K]. None with "cudnn".
        implementation: "xla" or "cudnn".

    Returns:
        [..., Q, heads, d] in the dtype of `value`.
    """
    if implementation == "cudnn":
        from twins_jax.ops import cudnn

        return cudnn.softmax_attention(query, key, value)
    weights = _exp_scores(query, key, bias)
    attended = _batched_dot(weights.astype(value.dtype), _heads_first(value), 1, weights.dtype)
    # The division by the weights' sum comes last: d numbers a query instead of K.
    attended = (attended / weights.sum(axis=-1, keepdims=True)).astype(value.dtype)
    *batch, queries, heads, dim = query.shape
    return jnp.swapaxes(attended.reshape(*batch, heads, queries, dim), -3, -2)


def softmax_weights(query: jax.Array, key: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """The weights that `softmax_attention` gives the values: [..., heads, Q, K], in float32 at least."""
    weights = _exp_scores(query, key, bias)
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return weights.reshape(*query.shape[:-3], query.shape[-2], *weights.shape[1:])


def _exp_scores(query: jax.Array, key: jax.Array, bias: jax.Array | None) -> jax.Array:
    """exp(query key^T / sqrt(d) + bias) up to a factor for each query: [batch, Q, K], in float32 at least."""
    score_dtype = at_least_float32(query.dtype)
    scale = query.shape[-1] ** -0.5
    scores = _batched_dot(_heads_first(query * scale), _heads_first(key), 2, score_dtype)
    if bias is not None:
        shape = (*query.shape[:-3], query.shape[-2], *scores.shape[1:])
        bias = lax.broadcast_to_rank(bias.astype(score_dtype), len(shape))
        scores = (scores.reshape(shape) + bias).reshape(scores.shape)
    return jnp.exp(scores - lax.stop_gradient(scores.max(axis=-1, keepdims=True)))


def _split_heads(x: jax.Array, num_heads: int) -> jax.Array:
    """[B, H, W, C] -> [B, H * W, heads, d]."""
    batch, height, width, dim = x.shape
    return x.reshape(batch, height * width, num_heads, dim // num_heads)


def _heads_first(x: jax.Array) -> jax.Array:
    """[..., N, heads, d] -> [batch, N, d], with one batch axis of everything else."""
    return jnp.swapaxes(x, -3, -2).reshape(-1, x.shape[-3], x.shape[-1])


def _batched_dot(x: jax.Array, y: jax.Array, axis: int, dtype: DTypeLike) -> jax.Array:
    """The products of x [batch, M, K] and y [batch, N, K] (`axis` 2) or [batch, K, N] (`axis` 1): [batch, M, N]."""
    return lax.dot_general(x, y, (((2,), (axis,)), ((0,), (0,))), preferred_element_type=dtype)
