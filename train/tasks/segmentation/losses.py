"""The loss of segmentation: cross-entropy of every pixel at the label's size."""

import jax
import jax.numpy as jnp
import optax

from twins_jax import ops
from twins_jax.segmentation.palette import IGNORED


def pixel_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes the mean cross-entropy of pixels; the mean is over all, and ignored ones add 0 (mmseg's).

    The backward pass computes the resized logits anew: what is kept for it is the logits at their own size.

    Args:
        logits: [B, h, w, K], resized bilinearly to the labels.
        labels: uint8 [B, H, W], classes below K or `IGNORED`.

    Returns:
        float32 [].
    """
    return _sum(logits, labels) / max(labels.size, 1)


@jax.checkpoint  # type: ignore[untyped-decorator]
def _sum(logits: jax.Array, labels: jax.Array) -> jax.Array:
    resized = ops.resize_bilinear(logits.astype(jnp.float32), (labels.shape[1], labels.shape[2]))
    is_valid = labels != IGNORED
    classes = jnp.where(is_valid, labels, 0).astype(jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(resized, classes)
    return jnp.where(is_valid, losses, 0.0).sum()
