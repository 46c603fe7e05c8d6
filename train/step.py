"""The training step, a pure function of (state, batch)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from twins_jax import Params
from twins_jax.preprocess import normalize

from .config import TrainConfig
from .state import TrainState
from .tasks.classification.losses import cross_entropy, smooth_targets
from .tasks.classification.mixing import mix, random_erase

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_train_step(
    apply: Callable[..., jax.Array],
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    num_classes: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Makes the training step, to be jitted.

    Args:
        apply: `split_model`'s pure function, (params, images, key) -> logits [B, num_classes].
        optimizer: of the parameters.
        config: the run's.
        num_classes: width of the targets.

    Returns:
        (state, {"image": uint8 [B, H, W, 3], "label": int32 [B]}) -> (next state, {"loss": float32 [], "grad_norm":
        float32 []}). All randomness is folded from the seed and the step.
    """
    parts = config.optim.accumulate

    def loss_fn(params: Params, images: jax.Array, targets: jax.Array, key: jax.Array) -> jax.Array:
        return cross_entropy(apply(params, images, key), targets).mean()

    def accumulated(params: Params, images: jax.Array, targets: jax.Array, key: jax.Array) -> tuple[jax.Array, Params]:
        """The mean loss and gradients of the batch's parts, each of which takes every `parts`-th row.

        So every device works on its own rows in each part; parts of neighbouring rows would move them.
        """

        def add_part(sums: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, jax.value_and_grad(loss_fn)(params, *part)), None

        def split(rows: jax.Array) -> jax.Array:
            return rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1)

        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        sums, _ = jax.lax.scan(add_part, zeros, (split(images), split(targets), jax.random.split(key, parts)))
        return jax.tree.map(lambda total: total / parts, sums)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        erase_key, mix_key, drop_key = jax.random.split(key, 3)
        images = random_erase(erase_key, normalize(batch["image"]), config.mix.erase_probability)
        targets = smooth_targets(batch["label"], num_classes, config.optim.label_smoothing)
        images, targets = mix(mix_key, images, targets, config.mix)
        loss_and_gradients = accumulated if parts > 1 else jax.value_and_grad(loss_fn)
        loss, gradients = loss_and_gradients(state.params, images, targets, drop_key)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1.0 - config.optim.ema_decay)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradients)}
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    return train_step
