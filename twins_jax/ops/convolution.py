"""Convolutions: those of Twins as a product of patches and as a sum of shifted maps, and that of the dense heads."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike

from twins_jax.ops.numerics import add_bias, at_least_float32, crop, per_channel
from twins_jax.ops.xla_cpu import blocked_dot, by_taps
from twins_jax.ops.xla_tpu import depthwise_form


def patch_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array, *, dtype: DTypeLike) -> jax.Array:
    """A convolution whose stride is its kernel's side, as one matrix product over flattened patches.

    Args:
        x: [B, H, W, in]. A remainder of H or W that does not fill a patch is dropped, as PyTorch's unpadded
            convolution drops it.
        kernel: [size, size, in, out].
        bias: [out].
        dtype: of the computation.

    Returns:
        [B, H // size, W // size, out] in `dtype`.
    """
    batch, height, width, channels = x.shape
    size = kernel.shape[0]
    rows, columns = height // size, width // size
    x = crop(x, 0, 0, rows * size, columns * size)
    x = x.reshape(batch, rows, size, columns, size, channels).swapaxes(2, 3)
    x = x.reshape(batch, rows, columns, size * size * channels).astype(dtype)
    return add_bias(blocked_dot(x, kernel.astype(dtype).reshape(size * size * channels, -1)), bias)


def depthwise_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """A zero-padded depthwise convolution of stride 1, as a sum of shifted maps but for bfloat16 on TPUs.

    The sum has the dtype float32 at least, because the parameters' gradients are sums over all positions in it (see
    `numerics.add_bias`).

    Args:
        x: [B, H, W, C].
        kernel: [size, size, 1, C] of odd size.
        bias: [C].

    Returns:
        [B, H, W, C], not rounded to the dtype of x: float32, or float64 where x is.
    """
    wide = at_least_float32(x.dtype)
    return depthwise_form(_shifted_sum, x, kernel.astype(wide), bias.astype(wide))


def _shifted_sum(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """A depthwise convolution in the dtype of its kernel and bias."""
    _, height, width, _ = x.shape
    size = kernel.shape[0]
    margin = (size // 2, size // 2)
    padded = jnp.pad(x, ((0, 0), margin, margin, (0, 0))).astype(kernel.dtype)
    total = per_channel(bias, x)
    for i in range(size):
        for j in range(size):
            total = total + crop(padded, i, j, height, width) * per_channel(kernel[i, j, 0], x)
    return total


def conv(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, *, stride: int = 1, dtype: DTypeLike
) -> jax.Array:
    """A convolution, zero-padded by half its kernel's side on each side of the map, as PyTorch's `padding=size // 2`.

    Args:
        x: [B, H, W, in].
        kernel: [size, size, in, out] of odd size.
        bias: [out], or None.
        stride: positions from one output to the next, both ways.
        dtype: of the computation.

    Returns:
        [B, ceil(H / stride), ceil(W / stride), out] in `dtype`.
    """
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    if kernel.shape[0] == stride == 1:
        total = blocked_dot(x.reshape(-1, x.shape[-1]), kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[-1])
    else:
        total = _conv_with_margin(x, kernel, stride)
    return total if bias is None else add_bias(total, bias)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _conv_with_margin(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    margin = (kernel.shape[0] // 2,) * 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), (margin, margin), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@partial(_conv_with_margin.defjvp, symbolic_zeros=True)
def _conv_jvp(stride: int, primals: tuple[jax.Array, jax.Array], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    """The convolution is linear in each argument. `by_taps` computes what is linear in the kernel, if it is faster."""
    (x, kernel), (x_tangent, kernel_tangent) = primals, tangents
    terms = []
    if not isinstance(x_tangent, SymbolicZero):
        terms.append(_conv_with_margin(x_tangent, kernel, stride))
    if not isinstance(kernel_tangent, SymbolicZero):

        def run(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return _conv_with_margin(x, kernel, stride)

        terms.append(by_taps(run, x, kernel_tangent) if stride == 1 else run(x, kernel_tangent))
    return _conv_with_margin(x, kernel, stride), sum(terms[1:], terms[0])
