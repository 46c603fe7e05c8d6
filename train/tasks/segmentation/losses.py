"""The loss of segmentation: cross-entropy of every pixel at the label's size."""

import jax
import jax.numpy as jnp
import optax

from twins_jax import ops
from twins_jax.segmentation.palette import IGNORED

from .rows import rows_at_a_time


def pixel_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes the mean cross-entropy of pixels; the mean is over all, and ignored ones add 0 (mmseg's).

    A few rows of the resized logits are computed at a time, and again in the backward pass: for two labels of 512x512
    and 150 classes the loss and its gradient take 0.18 GB in place of 1.16, and half the time on a CPU (jaxlib 0.10).

    Args:
        logits: [B, h, w, K], resized bilinearly to the labels.
        labels: uint8 [B, H, W], classes below K or `IGNORED`.

    Returns:
        float32 [].
    """
    batch, height, width = labels.shape
    step = rows_at_a_time(batch, height, width, logits.shape[-1])
    logits = logits.astype(jnp.float32)  # before the parts, whose gradients are then added up in float32

    @jax.checkpoint
    def of_rows(logits: jax.Array, first_row: jax.Array, labels: jax.Array) -> jax.Array:
        resized = ops.resize_bilinear(logits, (step, width), target=(height, width), first_row=first_row)
        return _sum(resized, labels)

    first_rows = jnp.arange(0, height, step, dtype=jnp.int32)
    rest = len(first_rows) * step - height
    parts = jnp.pad(labels, ((0, 0), (0, rest), (0, 0)), constant_values=IGNORED)
    parts = parts.reshape(batch, -1, step, width).swapaxes(0, 1)
    total, _ = jax.lax.scan(
        lambda total, part: (total + of_rows(logits, *part), None), jnp.zeros(()), (first_rows, parts)
    )
    return total / max(labels.size, 1)


def _sum(logits: jax.Array, labels: jax.Array) -> jax.Array:
    is_valid = labels != IGNORED
    classes = jnp.where(is_valid, labels, 0).astype(jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
    return jnp.where(is_valid, losses, 0.0).sum()
