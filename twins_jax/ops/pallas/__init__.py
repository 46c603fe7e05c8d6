"""Attention as Pallas kernels, which Triton compiles for GPUs: no scores and no copies of windows in memory.

Importing Pallas takes a while: `ops.attention` and `ops.window_attention` import this module when they need it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from twins_jax.ops.pallas.gsa import gsa
from twins_jax.ops.pallas.lsa import Windows, lsa


def attention(query: jax.Array, key_value: jax.Array, num_heads: int) -> jax.Array:
    """`ops.attention`: query [B, H, W, C] and key_value [B, h, w, 2 C] give [B, H, W, C]."""
    batch, *_, dim = query.shape
    key_value = key_value.reshape(batch, -1, 2 * dim)
    return gsa(query.reshape(batch, -1, dim), key_value, num_heads).reshape(query.shape)


def window_attention(
    x: jax.Array,
    project: Callable[[jax.Array], jax.Array],
    num_heads: int,
    window_size: int,
    *,
    masks_padding: bool,
) -> jax.Array:
    """`ops.window_attention` [B, H, W, C] -> [B, H, W, C], which projects the map itself instead of its windows."""
    _, height, width, dim = x.shape
    windows = Windows(height, width, window_size, see_padding=not masks_padding)
    return lsa(project(x), project(jnp.zeros((dim,), x.dtype)), num_heads, windows)
