"""The convolution of maps of several sizes, resized to one and concatenated, at a fraction of its arithmetic."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from twins_jax.ops.convolution import conv
from twins_jax.ops.numerics import at_least_float32
from twins_jax.ops.resize import bilinear_weights, resize_bilinear
from twins_jax.ops.xla_cpu import blocked_dot


def resized_conv(maps: Sequence[jax.Array], kernel: jax.Array, *, dtype: DTypeLike) -> jax.Array:
    """Convolves maps that are resized bilinearly to the size of the first one and concatenated, zero-padded as `conv`.

    The convolution of a concatenation is the sum of the convolutions of its parts. Each tap of the kernel is a matrix
    product over channels, and resizing acts on positions: the two commute. The products of a coarse map are computed at
    its own size, and then one sparse linear map for each axis resizes, shifts and adds them. UPerNet's last 3x3
    convolution at 512x512 takes 117 in place of 309 billion operations, and its input of 2,048 channels, which is the
    largest array of the head, is never made. A map for which this takes more operations is resized first.

    Args:
        maps: [B, h, w, C] each, of any sizes and channels.
        kernel: [size, size, sum of C, out] of odd size; its channels are in the order of the maps.
        dtype: of the computation.

    Returns:
        [B, H, W, out] in `dtype`, H and W those of the first map.
    """
    height, width = maps[0].shape[1:3]
    ends = np.cumsum([x.shape[-1] for x in maps])
    same: list[jax.Array] = []
    parts: list[jax.Array] = []
    total: list[jax.Array] = []
    for x, end in zip(maps, ends, strict=True):
        part = lax.slice_in_dim(kernel, int(end) - x.shape[-1], int(end), axis=2)
        if _is_cheaper(x.shape, (height, width), kernel.shape[0]):
            total.append(_conv_then_resize(x.astype(dtype), part.astype(dtype), (height, width)))
        else:
            same.append(resize_bilinear(x.astype(dtype), (height, width)))
            parts.append(part)
    if same:
        direct = conv(jnp.concatenate(same, axis=-1), jnp.concatenate(parts, axis=2), dtype=dtype)
        total.append(direct.astype(at_least_float32(dtype)))
    return sum(total[1:], total[0]).astype(dtype)


def _is_cheaper(shape: tuple[int, ...], size: tuple[int, int], taps: int) -> bool:
    """True if the products come first, by the multiplications for one output channel of one image."""
    (rows, columns, channels), (height, width) = shape[1:], size
    products = taps**2 * rows * columns * channels
    resizing = taps * rows * width * (taps * columns + height)
    return products + resizing < taps**2 * height * width * channels


def _conv_then_resize(x: jax.Array, kernel: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The convolution of x [B, h, w, C], resized to `size`: [B, H, W, out] in float32 at least."""
    batch, rows, columns, channels = x.shape
    taps, out = kernel.shape[0], kernel.shape[3]
    wide = at_least_float32(x.dtype)
    vertical, horizontal = (
        _shifted_weights(given, wanted, taps).astype(x.dtype)
        for given, wanted in zip((rows, columns), size, strict=True)
    )
    positions = x.reshape(-1, channels)
    lines = []
    for i in range(taps):
        products = blocked_dot(positions, kernel[i].swapaxes(0, 1).reshape(channels, taps * out))
        products = products.reshape(-1, columns * taps, out)
        weights = jnp.broadcast_to(horizontal, (products.shape[0], *horizontal.shape))
        line = lax.dot_general(weights, products, (((2,), (1,)), ((0,), (0,))))
        lines.append(line.reshape(batch, rows, size[1] * out))
    stack = jnp.stack(lines, axis=2).reshape(batch, rows * taps, size[1] * out)
    weights = jnp.broadcast_to(vertical, (batch, *vertical.shape))
    total = lax.dot_general(weights, stack, (((2,), (1,)), ((0,), (0,))), preferred_element_type=wide)
    return total.reshape(batch, *size, out)


def _shifted_weights(source: int, target: int, taps: int) -> np.ndarray:
    """The weights [target, source * taps] of resizing, then shifting by each tap, with zeros from outside."""
    weights = np.pad(bilinear_weights(source, target), ((taps // 2, taps // 2), (0, 0)))
    return np.stack([weights[tap : tap + target] for tap in range(taps)], axis=-1).reshape(target, -1)
