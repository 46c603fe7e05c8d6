"""Images as Twins models expect them."""

import jax
import jax.numpy as jnp
import numpy as np

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
"""Mean of ImageNet-1K's red, green and blue in [0, 1]; all published weights were trained with it."""

IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
"""Standard deviation of the same."""


def normalize(images: jax.Array) -> jax.Array:
    """uint8 [..., H, W, 3], RGB, to float32 of mean 0 and standard deviation 1 over ImageNet.

    Training calls it on the device: a quarter of the bytes crosses to it.
    """
    return (images.astype(jnp.float32) / 255.0 - IMAGENET_MEAN) / IMAGENET_STD
