"""Multi-head attention of the positions of one map to those of another."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from twins_jax.config import AttentionImplementation
from twins_jax.ops.dispatch import Implementation, choose
from twins_jax.ops.numerics import at_least_float32


def attention(
    query: jax.Array, key_value: jax.Array, num_heads: int, implementation: AttentionImplementation = "auto"
) -> jax.Array:
    """Attention of every position of a map to every position of another: softmax(q k^T / sqrt(d)) v for each head.

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

    def split_heads(x: jax.Array) -> jax.Array:
        return x.reshape(batch, x.shape[1] * x.shape[2], num_heads, dim // num_heads)

    key, value = map(split_heads, jnp.split(key_value, 2, axis=-1))
    return softmax_attention(split_heads(query), key, value, implementation=chosen).reshape(query.shape)


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
    score_dtype = at_least_float32(query.dtype)
    scale = query.shape[-1] ** -0.5
    scores = _batched_dot(_heads_first(query * scale), _heads_first(key), 2, score_dtype)
    if bias is not None:
        shape = (*query.shape[:-3], query.shape[-2], *scores.shape[1:])
        bias = lax.broadcast_to_rank(bias.astype(score_dtype), len(shape))
        scores = (scores.reshape(shape) + bias).reshape(scores.shape)
    weights = jnp.exp(scores - lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    attended = _batched_dot(weights.astype(value.dtype), _heads_first(value), 1, score_dtype)
    # The division by the weights' sum comes last: d numbers a query instead of K.
    attended = (attended / weights.sum(axis=-1, keepdims=True)).astype(value.dtype)
    *batch, queries, heads, dim = query.shape
    return jnp.swapaxes(attended.reshape(*batch, heads, queries, dim), -3, -2)


def _heads_first(x: jax.Array) -> jax.Array:
    """[..., N, heads, d] -> [batch, N, d], with one batch axis of everything else."""
    return jnp.swapaxes(x, -3, -2).reshape(-1, x.shape[-3], x.shape[-1])


def _batched_dot(x: jax.Array, y: jax.Array, axis: int, dtype: DTypeLike) -> jax.Array:
    """The products of x [batch, M, K] and y [batch, N, K] (`axis` 2) or [batch, K, N] (`axis` 1): [batch, M, N]."""
    return lax.dot_general(x, y, (((2,), (axis,)), ((0,), (0,))), preferred_element_type=dtype)
