"""The padding of images that are smaller than their batch."""

import jax
import jax.numpy as jnp


def zero_padding(images: jax.Array, sizes: jax.Array) -> jax.Array:
    """Sets images [B, H, W, C] to 0 beyond their own sizes, int32 [B, 2]: padding is added to normalized images."""
    rows, columns = (jnp.arange(length, dtype=jnp.int32) for length in images.shape[1:3])
    inside = (rows[None, :, None] < sizes[:, 0, None, None]) & (columns[None, None] < sizes[:, 1, None, None])
    return jnp.where(inside[..., None], images, jnp.zeros((), images.dtype))
