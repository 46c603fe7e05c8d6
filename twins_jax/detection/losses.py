"""The focal loss of RetinaNet; optax has the other losses of detection in a line each."""

import jax
import jax.numpy as jnp

ALPHA = 0.25
"""Weight of a positive; a negative has 1 - ALPHA (the paper's)."""


@jax.checkpoint
def sigmoid_focal_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Computes the focal loss of each logit: -alpha_t (1 - p_t)^2 log(p_t), with p_t the probability of the target.

    It is "Focal Loss for Dense Object Detection" (arXiv 1708.02002), equation 5, with alpha 0.25 and gamma 2. Only the
    logits and targets are stored for the backward pass, which are 129 and 32 MB for the 201,600 anchors and 80 classes
    of two images of 800x1344.

    Args:
        logits: [...], of any floating-point type.
        targets: bool [...].

    Returns:
        float32 [...].
    """
    logits = logits.astype(jnp.float32)
    of_target = jnp.where(targets, logits, -logits)  # p_t = sigmoid(of_target)
    weight = jnp.where(targets, ALPHA, 1 - ALPHA)
    return weight * jnp.square(jax.nn.sigmoid(-of_target)) * jax.nn.softplus(-of_target)
