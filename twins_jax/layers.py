"""The layers that Twins shares with other vision transformers, and the reference's initialisers."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from twins_jax.config import TwinsConfig
from twins_jax.materialise import separate
from twins_jax.matmul import dot

LINEAR_INIT = nnx.initializers.normal(0.02)
"""The reference calls `trunc_normal_(std=0.02)`, which cuts at the absolute values -2 and 2, 100 standard deviations
out: a plain normal distribution (upstream `gvt.py`, `_init_weights`)."""


def conv_init(fan_out: int) -> nnx.Initializer:
    """Normal of variance 2 / fan_out, fan_out = kernel area * output channels / groups (upstream `gvt.py`)."""
    return nnx.initializers.normal((2.0 / fan_out) ** 0.5)


def at_least_float32(dtype: DTypeLike) -> DTypeLike:
    """`dtype`, or float32 where that has more bits; says so even where implicit promotion is forbidden."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds bias [C] to x [..., C] in float32 at least; the result has the dtype of x.

    Not for the sum's sake: the bias's gradient is a sum over all positions, and takes the dtype of the addition. In
    bfloat16 it would stop to grow once it is 256 times as large as one term.
    """
    wide = at_least_float32(x.dtype)
    return (x.astype(wide) + bias.astype(wide)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis, with scale, bias and the two-pass variance: [..., C] -> [..., C].

    Statistics and result in float32 at least, the result then rounded to the model's dtype. Normalising comes before
    scaling, unlike in `nnx.LayerNorm`, where scale over deviation is an array as large as the input that XLA's CPU
    backend writes to memory in training.
    """

    def __init__(self, dim: int, *, epsilon: float, config: TwinsConfig) -> None:
        self.scale = nnx.Param(jnp.ones((dim,), config.param_dtype))
        self.bias = nnx.Param(jnp.zeros((dim,), config.param_dtype))
        self.epsilon = epsilon
        self.dtype = config.dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = at_least_float32(self.dtype)
        x = x.astype(wide)
        centred = x - x.mean(axis=-1, keepdims=True)
        normal = centred * lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + self.epsilon)
        return separate(normal * self.scale[...].astype(wide) + self.bias[...].astype(wide)).astype(self.dtype)


class Linear(nnx.Module):
    """A linear layer with bias and the reference's initialiser: [..., in] -> [..., out]."""

    def __init__(self, in_features: int, out_features: int, *, config: TwinsConfig, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(LINEAR_INIT(rngs.params(), (in_features, out_features), config.param_dtype))
        self.bias = nnx.Param(jnp.zeros((out_features,), config.param_dtype))
        self.dtype = config.dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        # One axis of positions, so that XLA's CPU backend can work in place on what comes before and after.
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        rows = add_bias(dot(rows, self.kernel[...].astype(self.dtype)), self.bias[...])
        return rows.reshape(*x.shape[:-1], rows.shape[-1])


def drop(dropout: nnx.Dropout, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
    """`dropout` of x when there are `rngs` to draw from, and x itself otherwise.

    The randomness comes with the call so that a model's state holds parameters only: a Dropout that owns its `rngs`
    stores two more leaves, even at rate 0.
    """
    return dropout(x, deterministic=rngs is None, rngs=rngs)


def drop_path(rate: float) -> nnx.Dropout:
    """Stochastic depth: drops the whole residual branch of a sample, for x of shape [B, H, W, C]."""
    return nnx.Dropout(rate, broadcast_dims=(1, 2, 3))


class PatchConv(nnx.Module):
    """A convolution whose kernel is as large as its stride: patch embedding and GSA's sub-sampling.

    [B, H, W, in] -> [B, H // size, W // size, out]; a remainder of H or W that does not fill a patch is dropped, as
    PyTorch's unpadded convolution does. Computed as one matrix product over flattened patches, which XLA runs faster
    than its convolution on CPUs, forward and backward, and which has the same parameters: kernel [size, size, in, out].
    """

    def __init__(self, in_channels: int, out_channels: int, size: int, *, config: TwinsConfig, rngs: nnx.Rngs) -> None:
        init, shape = conv_init(size * size * out_channels), (size, size, in_channels, out_channels)
        self.kernel = nnx.Param(init(rngs.params(), shape, config.param_dtype))
        self.bias = nnx.Param(jnp.zeros((out_channels,), config.param_dtype))
        self.size = size
        self.dtype = config.dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        size, rows, columns = self.size, height // self.size, width // self.size
        x = x[:, : rows * size, : columns * size]
        x = x.reshape(batch, rows, size, columns, size, channels).swapaxes(2, 3)
        x = x.reshape(batch, rows, columns, size * size * channels)
        kernel = self.kernel[...].astype(self.dtype).reshape(size * size * channels, -1)
        return add_bias(dot(x, kernel), self.bias[...])


class PatchEmbed(nnx.Module):
    """Cuts a map into `size` x `size` patches and embeds each: [B, H, W, in] -> [B, H // size, W // size, out].

    The norm's epsilon is 1e-5, PyTorch's default, unlike the 1e-6 of the blocks' norms (upstream `gvt.py`).
    """

    def __init__(self, in_channels: int, out_channels: int, size: int, *, config: TwinsConfig, rngs: nnx.Rngs) -> None:
        self.proj = PatchConv(in_channels, out_channels, size, config=config, rngs=rngs)
        self.norm = LayerNorm(out_channels, epsilon=1e-5, config=config)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.proj(x))


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x / 2 * (1 + erf(x / sqrt(2))), in float32 at least.

    As PyTorch has it. `jax.nn.gelu` takes erfc instead, which is as exact far below zero, where results are below
    1e-6, and costs twice as much on CPUs. The derivative is a function of x alone, so that nothing else is kept for it.
    """
    wide = x.astype(at_least_float32(x.dtype))
    return (wide * _normal_cdf(wide)).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    wide = x.astype(at_least_float32(x.dtype))
    density = jnp.exp(-0.5 * wide * wide) * (2 * np.pi) ** -0.5
    # Phi(x) as 1 - Phi(-x): XLA finds Phi(x) in the forward pass otherwise, and keeps it for the backward pass.
    derivative = 1.0 - _normal_cdf(-wide) + wide * density
    return gelu(x), (tangent.astype(wide.dtype) * derivative).astype(x.dtype)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * lax.erf(x * 0.5**0.5)


class Mlp(nnx.Module):
    """Two linear layers with an exact (erf) GELU between them: [..., C] -> [..., C]."""

    def __init__(self, dim: int, hidden: int, *, config: TwinsConfig, rngs: nnx.Rngs) -> None:
        self.fc1 = Linear(dim, hidden, config=config, rngs=rngs)
        self.fc2 = Linear(hidden, dim, config=config, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout_rate)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        # One axis of positions throughout: with a reshape on the way, XLA does not compute GELU in place.
        rows = drop(self.dropout, gelu(self.fc1(x.reshape(-1, x.shape[-1]))), rngs)
        return drop(self.dropout, self.fc2(rows), rngs).reshape(x.shape)
