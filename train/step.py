"""The training step, a pure function of (state, batch)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from train.config import TrainConfig
from train.losses import cross_entropy, smooth_targets
from train.state import TrainState
from twins_jax import Params

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

# The statistics of ImageNet-1K that all published weights were trained with, for RGB in [0, 1].
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalise(images: jax.Array) -> jax.Array:
    """uint8 [B, H, W, 3] -> float32 [B, H, W, 3] of mean 0 and standard deviation 1 over ImageNet.

    On the device, so that a quarter of the bytes crosses to it.
    """
    return (images.astype(jnp.float32) / 255.0 - IMAGENET_MEAN) / IMAGENET_STD


def batch_shapes(config: TrainConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a training batch."""
    side = config.data.image_size
    return {
        "image": jax.ShapeDtypeStruct((config.batch_size, side, side, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
    }


def make_train_step(
    apply: Callable[..., jax.Array],
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    num_classes: int,
) -> jax.stages.Wrapped:
    """Makes the jitted step, which donates its state.

    Args:
        apply: `split_model`'s pure function, (params, images, key) -> logits [B, num_classes].
        optimizer: of the parameters.
        config: the run's.
        num_classes: width of the targets.

    Returns:
        (state, {"image": uint8 [B, H, W, 3], "label": int32 [B]}) -> (next state, {"loss": float32 [], "grad_norm":
        float32 []}). All randomness is folded from the seed and the step.
    """

    def loss_fn(params: Params, images: jax.Array, targets: jax.Array, key: jax.Array) -> jax.Array:
        return cross_entropy(apply(params, images, key), targets).mean()

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        images = normalise(batch["image"])
        targets = smooth_targets(batch["label"], num_classes, config.optim.label_smoothing)
        # Mixup, cutmix and random erasing act here, on images and targets, with keys split from `key`.
        loss, gradients = jax.value_and_grad(loss_fn)(state.params, images, targets, key)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "grad_norm": optax.global_norm(gradients)}
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(train_step, donate_argnums=0)
