"""The positional encoding generator (PEG) of conditional positional encodings (arXiv 2102.10882)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from twins_jax import ops
from twins_jax.fit import declare
from twins_jax.layers import conv_init


class PositionalEncodingGenerator(nnx.Module):
    """Adds a position-dependent term to a map: x + conv(x), with a zero-padded 3x3 depthwise convolution with bias.

    [B, H, W, C] -> [B, H, W, C]. The zeros around the map tell positions apart (paper, section 3.1). Parameters: kernel
    [3, 3, 1, C], bias [C].
    """

    def __init__(
        self, dim: int, *, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        self.kernel = declare(nnx.Param, conv_init(3 * 3)(rngs.params(), (3, 3, 1, dim), param_dtype))
        self.bias = declare(nnx.Param, jnp.zeros((dim,), param_dtype))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(self.dtype)
        encoding = ops.depthwise_conv(x, self.kernel[...], self.bias[...])  # float32 at least
        return (x.astype(encoding.dtype) + encoding).astype(self.dtype)
