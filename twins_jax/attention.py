"""The two attentions of Twins: locally grouped (LSA) and globally sub-sampled (GSA).

Both are multi-head self-attentions over the positions of a map [B, H, W, C] with `heads` heads of d = C / heads
channels; they differ in which keys a query sees (paper, section 3.2, equation 5).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from twins_jax.config import TwinsConfig
from twins_jax.fused.choose import choose
from twins_jax.layers import LayerNorm, Linear, PatchConv, at_least_float32, drop

MASKED = -1000.0
"""What upstream adds to the scores of masked pairs; exp(-1000) is 0 in every dtype."""


def attend(query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """softmax(query key^T / sqrt(d) + bias) value, with scores and softmax in float32 at least.

    Args:
        query: [..., Q, heads, d].
        key: [..., K, heads, d].
        value: [..., K, heads, d].
        bias: float32, added to the scores; broadcast against [..., heads, Q, K].

    Returns:
        [..., Q, heads, d] in the dtype of `value`.
    """
    score_dtype = at_least_float32(query.dtype)
    scale = query.shape[-1] ** -0.5
    scores = _batched_dot(_heads_first(query * scale), _heads_first(key), 2, score_dtype)
    if bias is not None:
        shape = (*query.shape[:-3], query.shape[-2], *scores.shape[1:])
        scores = (scores.reshape(shape) + bias.astype(score_dtype)).reshape(scores.shape)
    weights = jnp.exp(scores - lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    attended = _batched_dot(weights.astype(value.dtype), _heads_first(value), 1, score_dtype)
    # Dividing here instead of the weights is the same, on d numbers a query instead of K.
    attended = (attended / weights.sum(axis=-1, keepdims=True)).astype(value.dtype)
    return jnp.swapaxes(attended.reshape(*query.shape[:-3], query.shape[-2], -1, query.shape[-1]), -3, -2)


def _heads_first(x: jax.Array) -> jax.Array:
    """[..., N, heads, d] -> [batch, N, d] with one batch axis of everything else.

    XLA's CPU backend multiplies batches of matrices that lie so five times faster than with heads between.
    """
    return jnp.swapaxes(x, -3, -2).reshape(-1, x.shape[-3], x.shape[-1])


def _batched_dot(x: jax.Array, y: jax.Array, axis: int, dtype: DTypeLike) -> jax.Array:
    """The products of x [batch, M, K] and y [batch, N, K] (`axis` 2) or [batch, K, N] (`axis` 1): [batch, M, N]."""
    return lax.dot_general(x, y, (((2,), (axis,)), ((0,), (0,))), preferred_element_type=dtype)


def split_windows(x: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] -> [B, H/size * W/size, size * size, C], windows and their positions in row-major order.

    H and W must be multiples of `size`.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels).swapaxes(2, 3)
    return x.reshape(batch, -1, size * size, channels)


def join_windows(x: jax.Array, size: int, height: int, width: int) -> jax.Array:
    """The inverse of `split_windows`: [B, H/size * W/size, size * size, C] -> [B, H, W, C]."""
    batch, _, _, channels = x.shape
    x = x.reshape(batch, height // size, width // size, size, size, channels).swapaxes(2, 3)
    return x.reshape(batch, height, width, channels)


def padding_bias(height: int, width: int, size: int) -> jax.Array | None:
    """What "mask" padding adds to the scores of a `height` x `width` map in windows of `size`.

    Upstream's segmentation code masks each pair of which exactly one position is padding. It marks the padding with
    `mask[:, -pad:]`, which marks everything when pad is 0; then no pair differs, and nothing is masked. So it masks
    only where both sides need padding, and the published segmentation weights were evaluated so: this does the same.

    Returns:
        float32 [windows, 1, size * size, size * size] of 0 and `MASKED`, or None where nothing is masked.
    """
    pad_bottom, pad_right = -height % size, -width % size
    if not (pad_bottom and pad_right):
        return None
    is_padding = np.ones((1, height + pad_bottom, width + pad_right, 1), np.bool_)
    is_padding[:, :height, :width] = False
    in_windows = split_windows(jnp.asarray(is_padding), size)[0, :, :, 0]
    differs = in_windows[:, :, None] != in_windows[:, None, :]
    return jnp.where(differs, MASKED, 0.0).astype(jnp.float32)[:, None]


class LocallyGroupedAttention(nnx.Module):
    """LSA: each position attends to the positions of its own `window_size` x `window_size` window.

    [B, H, W, C] -> [B, H, W, C]. A map that windows do not tile is padded with zeros at the bottom and right before
    the projection to query, key and value, so padded positions take part with the projection's bias as their value.
    With `window_padding="zero"` nothing else happens (timm, upstream detection); with "mask" real positions and
    padding do not see each other (upstream segmentation; for its one exception see `padding_bias`).
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, *, config: TwinsConfig, rngs: nnx.Rngs) -> None:
        self.qkv = Linear(dim, 3 * dim, config=config, rngs=rngs)
        self.proj = Linear(dim, dim, config=config, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout_rate)
        self.num_heads = num_heads
        self.window_size = window_size
        self.window_padding = config.window_padding
        self.attention_implementation = config.attention_implementation

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        _, height, width, dim = x.shape
        size = self.window_size
        masks_padding = self.window_padding == "mask" and bool(height % size and width % size)  # as `padding_bias`
        head_dim = dim // self.num_heads
        implementation = choose(
            self.attention_implementation, self.qkv.dtype, head_dim, window_size=size, masks_padding=masks_padding
        )
        if implementation == "pallas":
            from twins_jax.fused.lsa import Windows, lsa

            qkv = self.qkv(x)
            windows_of_map = Windows(height, width, size, see_padding=not masks_padding)
            attended = lsa(qkv, self.qkv.bias[...].astype(qkv.dtype), self.num_heads, windows_of_map)
            return drop(self.dropout, self.proj(attended), rngs)
        padded = jnp.pad(x, ((0, 0), (0, -height % size), (0, -width % size), (0, 0)))
        windows = split_windows(padded, size)
        heads = (*windows.shape[:-1], self.num_heads, head_dim)
        query, key, value = (part.reshape(heads) for part in jnp.split(self.qkv(windows), 3, axis=-1))
        bias = padding_bias(height, width, size) if self.window_padding == "mask" else None
        if implementation == "cudnn":
            from twins_jax.fused import cudnn

            attended = cudnn.attend(query, key, value).reshape(windows.shape)
        else:
            attended = attend(query, key, value, bias).reshape(windows.shape)
        attended = join_windows(attended, size, *padded.shape[1:3])[:, :height, :width]
        return drop(self.dropout, self.proj(attended), rngs)


class GlobalSubSampledAttention(nnx.Module):
    """GSA: each position attends to one representative of every `ratio` x `ratio` square of positions.

    [B, H, W, C] -> [B, H, W, C]. The representatives are made by a convolution with kernel and stride `ratio`, and
    normalised (epsilon 1e-5, PyTorch's default); ratio 1 has neither and is plain global attention. A remainder of H or
    W that does not fill a square has no representative.
    """

    def __init__(self, dim: int, num_heads: int, ratio: int, *, config: TwinsConfig, rngs: nnx.Rngs) -> None:
        self.q = Linear(dim, dim, config=config, rngs=rngs)
        self.kv = Linear(dim, 2 * dim, config=config, rngs=rngs)
        self.proj = Linear(dim, dim, config=config, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout_rate)
        self.num_heads = num_heads
        self.ratio = ratio
        self.attention_implementation = config.attention_implementation
        if ratio > 1:
            self.sub_sample = PatchConv(dim, dim, ratio, config=config, rngs=rngs)
            self.norm = LayerNorm(dim, epsilon=1e-5, config=config)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        batch, height, width, dim = x.shape
        heads, head_dim = self.num_heads, dim // self.num_heads
        representatives = self.norm(self.sub_sample(x)) if self.ratio > 1 else x
        implementation = choose(self.attention_implementation, self.q.dtype, head_dim)
        if implementation == "pallas":
            from twins_jax.fused.gsa import gsa

            key_value = self.kv(representatives).reshape(batch, -1, 2 * dim)
            attended = gsa(self.q(x).reshape(batch, -1, dim), key_value, heads).reshape(x.shape)
            return drop(self.dropout, self.proj(attended), rngs)
        query = self.q(x).reshape(batch, height * width, heads, head_dim)
        kv = jnp.split(self.kv(representatives), 2, axis=-1)
        key, value = (part.reshape(batch, -1, heads, head_dim) for part in kv)
        if implementation == "cudnn":
            from twins_jax.fused import cudnn

            attended = cudnn.attend(query, key, value).reshape(x.shape)
        else:
            attended = attend(query, key, value).reshape(x.shape)
        return drop(self.dropout, self.proj(attended), rngs)
