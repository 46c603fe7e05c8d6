"""The classification loss."""

import jax
import jax.numpy as jnp
import optax


def smooth_targets(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """Makes targets float32 [B, num_classes] of labels int [B], with a share `smoothing` spread over all classes."""
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes, dtype=jnp.float32), smoothing)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Computes the loss of each example, float32 [B], for logits and target distributions [B, classes]."""
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
