"""The positional encoding generator (PEG) of conditional positional encodings (arXiv 2102.10882)."""

import jax
import jax.numpy as jnp
from flax import nnx

from twins_jax.config import TwinsConfig
from twins_jax.layers import at_least_float32, conv_init


class PositionalEncodingGenerator(nnx.Module):
    """Adds a position-dependent term to a map: a zero-padded 3x3 depthwise convolution of it, with bias.

    [B, H, W, C] -> [B, H, W, C]. The padding is what tells positions apart (paper, section 3.1). Nine shifted
    multiply-adds compute it: XLA's CPU backend runs them over ten times faster than a convolution with C groups, and
    fuses them on other backends. The parameters are a depthwise convolution's: kernel [3, 3, 1, C], bias [C].
    """

    def __init__(self, dim: int, *, config: TwinsConfig, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(conv_init(3 * 3)(rngs.params(), (3, 3, 1, dim), config.param_dtype))
        self.bias = nnx.Param(jnp.zeros((dim,), config.param_dtype))
        self.dtype = config.dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        _, height, width, _ = x.shape
        # In float32 at least, for the sake of the gradients' sums over all positions, as in `layers.add_bias`.
        wide = at_least_float32(self.dtype)
        kernel = self.kernel[...].astype(wide)
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(wide)
        position = self.bias[...].astype(wide)
        for i in range(3):
            for j in range(3):
                position = position + padded[:, i : i + height, j : j + width] * kernel[i, j, 0]
        return (x.astype(wide) + position).astype(self.dtype)
