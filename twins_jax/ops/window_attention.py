"""Multi-head attention within the windows of a map."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from twins_jax.config import AttentionImplementation, WindowPadding
from twins_jax.ops.attention import softmax_attention, softmax_weights
from twins_jax.ops.dispatch import choose
from twins_jax.ops.numerics import crop

MASKED = -1000.0
"""Upstream adds it to the scores of masked pairs; exp(-1000) is 0 in every dtype."""


def window_attention(
    x: jax.Array,
    project: Callable[[jax.Array], jax.Array],
    num_heads: int,
    window_size: int,
    *,
    window_padding: WindowPadding = "zero",
    implementation: AttentionImplementation = "auto",
) -> jax.Array:
    """Projects a map to queries, keys and values, and lets each position attend to its own window.

    A map that windows do not tile is padded with zeros at the bottom and right before the projection: padding has the
    projection of zeros as its query, key and value. The projection is an argument for that reason.

    Args:
        x: [B, H, W, C], in the dtype that `project` returns.
        project: [..., C] -> [..., 3 C]: query, key and value, each head by head; acts on each position alone.
        num_heads: heads of C / num_heads channels.
        window_size: side of the windows.
        window_padding: "zero": all positions of a window see each other, padding too. "mask": positions of the map
            and padding do not see each other where `padding_bias` masks.
        implementation: as in `TwinsConfig`.

    Returns:
        [B, H, W, C] in the dtype of the values; B may be 0.

    Raises:
        InputError: the implementation does not apply (see `dispatch.choose`).
    """
    batch, height, width, dim = x.shape
    masks = window_padding == "mask" and bool(height % window_size and width % window_size)  # as `padding_bias`
    chosen = choose(implementation, x.dtype, dim // num_heads, window_size=window_size, masks_padding=masks)
    if batch == 0:
        chosen = "xla"  # a kernel needs programs to run
    if chosen == "pallas":
        from twins_jax.ops import pallas

        return pallas.window_attention(x, project, num_heads, window_size, masks_padding=masks)
    query, key, value = _project_windows(x, project, num_heads, window_size)
    bias = padding_bias(height, width, window_size) if masks else None
    attended = softmax_attention(query, key, value, bias, implementation=chosen).reshape(*query.shape[:3], dim)
    return _join(attended, window_size, height, width)


def window_attention_weights(
    x: jax.Array,
    project: Callable[[jax.Array], jax.Array],
    num_heads: int,
    window_size: int,
    *,
    window_padding: WindowPadding = "zero",
) -> jax.Array:
    """The weights that `window_attention` gives the values.

    Args:
        x: as in `window_attention`, as the other arguments.
        project: query, key and value.
        num_heads: heads.
        window_size: side of the windows.
        window_padding: "zero" or "mask".

    Returns:
        [B, heads, H, W, window_size, window_size], in float32 at least: of each position, over its window's.
    """
    batch, height, width, _ = x.shape
    query, key, _ = _project_windows(x, project, num_heads, window_size)
    bias = padding_bias(height, width, window_size) if window_padding == "mask" else None
    weights = jnp.moveaxis(softmax_weights(query, key, bias), 2, 3)  # [B, windows, queries, heads, keys]
    weights = weights.reshape(*weights.shape[:3], num_heads * window_size**2)
    weights = _join(weights, window_size, height, width)
    weights = weights.reshape(batch, height, width, num_heads, window_size, window_size)
    return jnp.moveaxis(weights, 3, 1)


def _project_windows(
    x: jax.Array, project: Callable[[jax.Array], jax.Array], num_heads: int, size: int
) -> list[jax.Array]:
    """[B, H, W, C] -> query, key and value [B, windows, size * size, heads, d] of the padded map's windows."""
    _, height, width, dim = x.shape
    padded = jnp.pad(x, ((0, 0), (0, -height % size), (0, -width % size), (0, 0)))
    windows = split_windows(padded, size)
    heads = (*windows.shape[:-1], num_heads, dim // num_heads)
    return [part.reshape(heads) for part in jnp.split(project(windows), 3, axis=-1)]


def _join(windows: jax.Array, size: int, height: int, width: int) -> jax.Array:
    """[B, windows, size * size, C] of a padded map -> [B, H, W, C]."""
    joined = join_windows(windows, size, height + -height % size, width + -width % size)
    return crop(joined, 0, 0, height, width)


def split_windows(x: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] -> [B, H/size * W/size, size * size, C], windows and their positions in row-major order.

    H and W must be multiples of `size`.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels).swapaxes(2, 3)
    return x.reshape(batch, (height // size) * (width // size), size * size, channels)


def join_windows(x: jax.Array, size: int, height: int, width: int) -> jax.Array:
    """The inverse of `split_windows`: [B, H/size * W/size, size * size, C] -> [B, H, W, C]."""
    batch, _, _, channels = x.shape
    x = x.reshape(batch, height // size, width // size, size, size, channels).swapaxes(2, 3)
    return x.reshape(batch, height, width, channels)


def padding_bias(height: int, width: int, size: int) -> jax.Array | None:
    """The term that "mask" padding adds to the scores of a `height` x `width` map in windows of `size`.

    Upstream's segmentation code masks each pair of positions of which exactly one is padding. It marks the padding with
    `mask[:, -pad:]`, which marks everything when pad is 0; then no pair differs, and nothing is masked. It therefore
    masks only where both sides need padding. The published segmentation weights were evaluated with that behavior, and
    this function repeats it.

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
