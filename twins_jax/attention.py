"""The two attentions of Twins: locally grouped (LSA) and globally sub-sampled (GSA).

Both are multi-head self-attentions over the positions of a map [B, H, W, C] with `num_heads` heads of d = C / num_heads
channels. They differ in which keys a query sees (paper, section 3.2, equation 5).
"""

import jax
from flax import nnx

from twins_jax import ops
from twins_jax.config import TwinsConfig
from twins_jax.layers import LayerNorm, Linear, PatchConv, drop


class LocallyGroupedAttention(nnx.Module):
    """LSA: each position attends to the positions of its own `window_size` x `window_size` window.

    [B, H, W, C] -> [B, H, W, C]. A map that windows do not tile is padded with zeros at the bottom and right before
    the projection to query, key and value: padding takes part, with the projection's bias as its value. With
    `window_padding="zero"` nothing else happens (timm, upstream detection). With "mask" real positions and padding do
    not see each other (upstream segmentation; `padding_bias` has its one exception).
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, *, config: TwinsConfig, rngs: nnx.Rngs) -> None:
        self.qkv = Linear(dim, 3 * dim, **config.dtypes, rngs=rngs)
        self.proj = Linear(dim, dim, **config.dtypes, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout_rate)
        self.num_heads = num_heads
        self.window_size = window_size
        self.window_padding = config.window_padding
        self.implementation = config.attention_implementation

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        attended = ops.window_attention(
            x,
            self.qkv,
            self.num_heads,
            self.window_size,
            window_padding=self.window_padding,
            implementation=self.implementation,
        )
        return drop(self.dropout, self.proj(attended), rngs)

    def weights(self, x: jax.Array) -> jax.Array:
        """Computes softmax(q k^T / sqrt(d)): [B, H, W, C] -> [B, heads, H, W, window_size, window_size].

        The weights of a position are over the positions of its window, of which some may be padding.
        """
        return ops.window_attention_weights(
            x, self.qkv, self.num_heads, self.window_size, window_padding=self.window_padding
        )


class GlobalSubSampledAttention(nnx.Module):
    """GSA: each position attends to one representative of every `ratio` x `ratio` square of positions.

    [B, H, W, C] -> [B, H, W, C]. A convolution with kernel and stride `ratio` makes the representatives, and a norm
    follows it (epsilon 1e-5, PyTorch's default). Ratio 1 has neither and is plain global attention. A remainder of H or
    W that does not fill a square has no representative.
    """

    def __init__(self, dim: int, num_heads: int, ratio: int, *, config: TwinsConfig, rngs: nnx.Rngs) -> None:
        self.q = Linear(dim, dim, **config.dtypes, rngs=rngs)
        self.kv = Linear(dim, 2 * dim, **config.dtypes, rngs=rngs)
        self.proj = Linear(dim, dim, **config.dtypes, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout_rate)
        self.num_heads = num_heads
        self.ratio = ratio
        self.implementation = config.attention_implementation
        if ratio > 1:
            self.sub_sample = PatchConv(dim, dim, ratio, **config.dtypes, rngs=rngs)
            self.norm = LayerNorm(dim, epsilon=1e-5, **config.dtypes)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        representatives = self._representatives(x)
        attended = ops.attention(self.q(x), self.kv(representatives), self.num_heads, self.implementation)
        return drop(self.dropout, self.proj(attended), rngs)

    def weights(self, x: jax.Array) -> jax.Array:
        """Computes softmax(q k^T / sqrt(d)): [B, H, W, C] -> [B, heads, H, W, H // ratio, W // ratio]."""
        return ops.attention_weights(self.q(x), self.kv(self._representatives(x)), self.num_heads)

    def _representatives(self, x: jax.Array) -> jax.Array:
        return self.norm(self.sub_sample(x)) if self.ratio > 1 else x
