"""Builds everything a run needs from its config."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import twins_jax
from twins_jax import InputError, TwinsClassifier
from twins_jax.sharding import batch_sharding, make_mesh

from .config import TrainConfig
from .data.sources import DatasetInfo, dataset_info
from .optim import make_optimizer, make_schedule
from .state import TrainState, create_state
from .step import Batch, Metrics, make_train_step
from .tasks.classification.metrics import make_eval_step


@dataclasses.dataclass(frozen=True)
class Run:
    """What a config stands for.

    Attributes:
        config: the run's.
        info: of the data set.
        mesh: over the devices of all processes.
        apply: the model's pure function, (params, images, key=None) -> logits.
        schedule: step -> learning rate.
        state: before the first step; the training step donates it.
        train_step: compiled; (state, batch) -> (state, metrics). None where the run only evaluates.
        eval_step: (params, batch) -> sums.
    """

    config: TrainConfig
    info: DatasetInfo
    mesh: Mesh
    apply: Callable[..., jax.Array]
    schedule: optax.Schedule
    state: TrainState
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]] | None
    eval_step: Callable[..., Any]

    @property
    def total_steps(self) -> int:
        """Length of the run in steps."""
        return self.config.total_steps(self.info.train_examples)


def build(config: TrainConfig) -> Run:
    """Builds a run, compiling its training step.

    Raises:
        InputError: a setting, the data or a checkpoint is not what it must be.
    """
    info = dataset_info(config.data)
    mesh = make_mesh(config.fsdp)
    check_batch_size(config, mesh)
    _check_divisible("eval_batch_size", config.eval_batch_size, mesh.size, "devices")
    apply, params = twins_jax.split_model(create_or_load_model(config, info.num_classes))
    schedule = make_schedule(config, info.train_examples)
    optimizer = optax.identity() if config.eval_only else make_optimizer(config, schedule)
    state = create_state(params, optimizer, mesh, ema=config.optim.ema_decay > 0)
    train_step = None
    if not config.eval_only:
        step = make_train_step(apply, optimizer, config, info.num_classes)
        # Compiled ahead, so that the first line's images/s is not that of the compiler.
        train_step = lower_train_step(step, state, config, mesh).compile()
    return Run(config, info, mesh, apply, schedule, state, train_step, make_eval_step(apply, mesh))


def lower_train_step(
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]], state: TrainState, config: TrainConfig, mesh: Mesh
) -> jax.stages.Lowered:
    """The program of a training step for the devices of a mesh, ready to compile.

    Args:
        step: of `make_train_step`.
        state: arrays laid out over the mesh, which the program takes the memory of, or what `abstract_state` returns.
        config: the run's.
        mesh: over devices that need not be at hand.
    """
    layout = jax.tree.map(lambda leaf: leaf.sharding, state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(layout, NamedSharding(mesh, P())))
    return jitted.lower(state, _batch_shapes(config, mesh))


def check_batch_size(config: TrainConfig, mesh: Mesh) -> None:
    """Raises InputError unless every device gets as many rows in each part of a batch."""
    rows = mesh.size * config.optim.accumulate
    _check_divisible("batch_size", config.batch_size, rows, "devices x optim.accumulate")


def create_or_load_model(config: TrainConfig, num_classes: int) -> TwinsClassifier:
    """The model of a run, with fresh weights or those of `config.init`.

    Raises:
        InputError: `init` cannot be loaded or is of another variant than `model.name`; or, with `eval_only`, of
            another number of classes.
    """
    uses: dict[str, Any] = {
        "drop_path_rate": config.model.drop_path_rate,
        "dropout_rate": config.model.dropout_rate,
        "window_padding": config.model.window_padding,
        "attention_implementation": config.model.attention_implementation,
        "dtype": jnp.dtype(config.model.dtype),
        "remat": config.model.remat,
    }
    rngs = nnx.Rngs(config.seed)
    if not config.init:
        return twins_jax.create_model(config.model.name, num_classes=num_classes, rngs=rngs, **uses)
    if config.eval_only:  # a fresh head is of use only to training
        model = twins_jax.from_pretrained(config.init, name=config.model.name, **uses)
        if model.num_classes != num_classes:
            raise InputError(f"init: {config.init} has {model.num_classes} classes, and the data {num_classes}")
        return model
    return twins_jax.from_pretrained(config.init, name=config.model.name, num_classes=num_classes, rngs=rngs, **uses)


def _batch_shapes(config: TrainConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    side, sharding = config.data.image_size, batch_sharding(mesh)
    return {
        "image": jax.ShapeDtypeStruct((config.batch_size, side, side, 3), jnp.uint8, sharding=sharding),
        "label": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32, sharding=sharding),
    }


def _check_divisible(field: str, value: int, divisor: int, what: str) -> None:
    if value % divisor:
        raise InputError(f"{field}={value}: allowed are multiples of {divisor} ({what})")
