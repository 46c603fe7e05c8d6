"""The losses of classification, and their targets."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Loss = Callable[[jax.Array, jax.Array], jax.Array]
"""(logits [B, classes], targets [B, classes]) -> float32 [B]."""


def smooth_targets(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """Makes targets float32 [B, num_classes] of labels int [B], with a share `smoothing` spread over all classes."""
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes, dtype=jnp.float32), smoothing)


def smooth_multi_hot(labels: jax.Array, smoothing: float) -> jax.Array:
    """Makes targets float32 [B, classes] of labels bool [B, classes], each of which moves by smoothing / 2 towards 1/2.

    As Keras's BinaryCrossentropy does it: the answers of the classes are distributions of their own.
    """
    return (1 - smoothing) * labels.astype(jnp.float32) + smoothing / 2


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Computes the loss of each example, float32 [B], for logits and target distributions [B, classes]."""
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Computes the mean over the classes of each one's binary cross-entropy, float32 [B].

    torch.nn.BCEWithLogitsLoss's, as timm's BinaryCrossEntropy and DeiT III (Touvron et al. 2022) have it.

    Args:
        logits: [B, classes].
        targets: [B, classes], the probability of each class.
    """
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets).mean(axis=-1)
