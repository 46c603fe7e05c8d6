"""All that exists for XLA's TPU backend: forms of other functions that move fewer bytes between the chip and its HBM.

Other backends see the form that their function has without it. No TPU has run these. The figures are bytes of the
programs that libtpu 0.0.42.1 compiles (`python -m train.benchmark.aot RECIPE --by_layer`). To find out whether a form
can go with a later libtpu, return the default and compare that report.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def depthwise_form(
    default: Callable[[jax.Array, jax.Array, jax.Array], jax.Array], x: jax.Array, kernel: jax.Array, bias: jax.Array
) -> jax.Array:
    """Returns default(x, kernel, bias), computed as a convolution with C groups on a TPU where x is bfloat16.

    The backend reads the map anew for every shift of a sum of shifted maps, in float32, and its backward pass writes
    nine maps. In a training step of SVT-S with 64 images the PEGs moved 2.57 GB, and move 0.54 GB as convolutions; the
    fewest are 0.24 GB (docs/results/2026-11-tpu.md). The convolution rounds its kernel and its result to bfloat16, as
    `numerics.linear` does. A map in float32 keeps the default, whose products are not rounded to bfloat16.

    Args:
        default: a zero-padded depthwise convolution.
        x: [B, H, W, C].
        kernel: [size, size, 1, C] of odd size, in float32 at least.
        bias: [C], in the dtype of the kernel.

    Returns:
        [B, H, W, C] in the dtype of the kernel.
    """
    if x.dtype != jnp.bfloat16:
        return default(x, kernel, bias)
    return lax.platform_dependent(x, kernel, bias, tpu=depthwise_convolution, default=default)


def depthwise_convolution(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """A zero-padded depthwise convolution in the dtype of x, whose sum with the bias has the dtype of the bias."""
    margin = (kernel.shape[0] // 2,) * 2
    total = lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (1, 1),
        (margin, margin),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )
    return total.astype(bias.dtype) + lax.broadcast_to_rank(bias, x.ndim)
