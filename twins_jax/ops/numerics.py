"""Linear layer, LayerNorm, GELU and residual addition, each with its rule for dtypes.

Matrix products run in the dtype of the computation. Statistics, sums over positions and transcendental functions run in
float32 at least. The order of operations is part of each function: `xla_cpu` says which orders were chosen for speed.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from twins_jax.ops.xla_cpu import blocked_dot, fusion_barrier, gradient_barrier


def at_least_float32(dtype: DTypeLike) -> DTypeLike:
    """Returns `dtype`, or float32 if that has more bits."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds bias [C] to x [..., C] in float32 at least, and returns the sum in the dtype of x.

    The gradient of the bias needs it, not the sum: that gradient is a sum over all positions in the dtype of the
    addition. A sum in bfloat16 stops growing once it is 256 times as large as one term.
    """
    wide = at_least_float32(x.dtype)
    return (x.astype(wide) + per_channel(bias.astype(wide), x)).astype(x.dtype)


def per_channel(values: jax.Array, x: jax.Array) -> jax.Array:
    """Gives values [C] the rank of x [..., C]: JAX's `jax_numpy_rank_promotion` lets users forbid that it does so."""
    return lax.broadcast_to_rank(values, x.ndim)


def crop(x: jax.Array, top: int, left: int, height: int, width: int) -> jax.Array:
    """x[:, top : top + height, left : left + width] of x [B, H, W, C].

    JAX takes these indices for a gather where B is unknown, as in an exported program; a slice is cheaper everywhere.
    """
    if x.shape[1:3] == (height, width):
        return x
    return lax.slice(x, (0, top, left, 0), (x.shape[0], top + height, left + width, x.shape[3]))


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array, *, dtype: DTypeLike) -> jax.Array:
    """Returns x @ kernel + bias of x [..., in], kernel [in, out] and bias [out]: [..., out] in `dtype`."""
    rows = x.reshape(-1, x.shape[-1]).astype(dtype)  # one axis of positions
    rows = add_bias(blocked_dot(rows, kernel.astype(dtype)), bias)
    return rows.reshape(*x.shape[:-1], rows.shape[-1])


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float, dtype: DTypeLike) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis of x [..., C], in `dtype`.

    The variance is the mean of squared differences from the mean (two passes over x). Everything runs in float32 at
    least and is rounded to `dtype` once. The scale comes last, because the gradient reads the normalized x.
    """
    wide = at_least_float32(dtype)
    x = x.astype(wide)
    centered = x - x.mean(axis=-1, keepdims=True)
    normal = centered * lax.rsqrt(jnp.square(centered).mean(axis=-1, keepdims=True) + epsilon)
    scaled = normal * per_channel(scale.astype(wide), x)
    return fusion_barrier(scaled + per_channel(bias.astype(wide), x)).astype(dtype)


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x / 2 * (1 + erf(x / sqrt(2))), in float32 at least: [...] -> [...] in the dtype of x.

    PyTorch computes it by erf, too. `jax.nn.gelu` takes erfc, which is more exact where results are below 1e-6, and
    slower. The derivative is a function of x alone: the backward pass keeps nothing else.
    """
    wide = x.astype(at_least_float32(x.dtype))
    return (wide * _normal_cdf(wide)).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    wide = x.astype(at_least_float32(x.dtype))
    density = jnp.exp(-0.5 * wide * wide) * (2 * np.pi) ** -0.5
    # Phi(x) as 1 - Phi(-x): XLA would find a Phi(x) in the forward pass, and keep it for the backward pass.
    derivative = 1.0 - _normal_cdf(-wide) + wide * density
    return gelu(x), (tangent.astype(wide.dtype) * derivative).astype(x.dtype)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * lax.erf(x * 0.5**0.5)


def residual_add(x: jax.Array, branch: jax.Array) -> jax.Array:
    """Returns x + branch, the two terms of a residual block: [...], both of one dtype."""
    return gradient_barrier(x + branch)
