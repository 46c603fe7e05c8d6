"""The training step, a pure function of (state, batch)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from twins_jax import BatchStats, Params, get_batch_stats, merge_model

from .config import RunConfig
from .state import TrainState
from .task import Batch, Task

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    task: Task, graphdef: nnx.GraphDef[Any], optimizer: optax.GradientTransformation, config: RunConfig
) -> TrainStep:
    """Makes the training step, to be jitted.

    Under jit a batch over several devices is one logical array. A BatchNorm therefore sees the statistics of the whole
    batch, or of a part of it where `optim.accumulate` cuts it: it is synchronized over devices and processes.

    Args:
        task: gives augmentation and loss.
        graphdef: of the model.
        optimizer: of the parameters.
        config: the run's.

    Returns:
        (state, batch) -> (next state, {"loss", "grad_norm" and the task's own scalars: float32 []}). All randomness is
        folded from the seed and the step.
    """
    parts = config.optim.accumulate

    def loss_fn(
        params: Params, batch_stats: BatchStats, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, BatchStats]]:
        model = merge_model(graphdef, params, batch_stats)
        loss, scalars = task.loss(model, batch, nnx.Rngs(dropout=key))
        return loss, (scalars, get_batch_stats(model))

    loss_and_gradients = jax.value_and_grad(loss_fn, has_aux=True)

    def whole(
        params: Params, batch_stats: BatchStats, batch: Batch, key: jax.Array
    ) -> tuple[tuple[jax.Array, Metrics, Params], BatchStats]:
        (loss, (scalars, batch_stats)), gradients = loss_and_gradients(params, batch_stats, batch, key)
        return (loss, scalars, gradients), batch_stats

    def in_parts(
        params: Params, batch_stats: BatchStats, batch: Batch, key: jax.Array
    ) -> tuple[tuple[jax.Array, Metrics, Params], BatchStats]:
        """Computes the means over the batch's parts, each of which takes every `parts`-th row.

        Every device then works on its own rows in each part; parts of neighboring rows would move them.
        """

        def add_part(carry: Any, part: Any) -> tuple[Any, None]:
            sums, batch_stats = carry
            found, batch_stats = whole(params, batch_stats, *part)
            return (jax.tree.map(jnp.add, sums, found), batch_stats), None

        def split(rows: jax.Array) -> jax.Array:
            return rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1)

        each = (jax.tree.map(split, batch), jax.random.split(key, parts))
        shapes, _ = jax.eval_shape(whole, params, batch_stats, *jax.tree.map(lambda x: x[0], each))
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        (sums, batch_stats), _ = jax.lax.scan(add_part, (zeros, batch_stats), each)
        return jax.tree.map(lambda total: total / parts, sums), batch_stats

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        *augment_keys, dropout_key = jax.random.split(key, 3)
        batch = task.augment(batch, augment_keys)
        step = in_parts if parts > 1 else whole
        (loss, scalars, gradients), batch_stats = step(state.params, state.batch_stats, batch, dropout_key)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1.0 - config.optim.ema_decay)
        metrics = {**scalars, "loss": loss, "grad_norm": optax.tree.norm(gradients)}
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), metrics

    return train_step
