"""Builds everything a run needs from its config."""

import dataclasses
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from twins_jax import get_batch_stats, get_params
from twins_jax.errors import require
from twins_jax.sharding import batch_sharding, make_mesh

from .config import RunConfig
from .evaluate import EvalStep, make_eval_step
from .optim import make_optimizer, make_schedule
from .state import TrainState, create_state
from .step import TrainStep, make_train_step
from .task import Task


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config made real.

    Attributes:
        config: the run's.
        task: what it trains.
        mesh: over the devices of all processes.
        graphdef: of the model.
        schedule: step -> learning rate.
        state: before the first step; the training step donates it.
        train_step: compiled. None where the run only evaluates.
        eval_step: of the task's evaluators.
    """

    config: RunConfig
    task: Task
    mesh: Mesh
    graphdef: nnx.GraphDef[Any]
    schedule: optax.Schedule
    state: TrainState
    train_step: TrainStep | None
    eval_step: EvalStep

    @property
    def total_steps(self) -> int:
        """Length of the run in steps."""
        return self.config.total_steps(self.task.info.train_examples)


def build(config: RunConfig) -> Experiment:
    """Builds a run, compiling its training step.

    Raises:
        InputError: a setting, the data or a checkpoint is not what it must be.
    """
    task = config.make_task()
    mesh = make_mesh(config.fsdp)
    check_batch_size(config, mesh)
    _check_divisible("eval_batch_size", config.eval_batch_size, mesh.size, "devices")
    model = task.create_model(nnx.Rngs(config.seed))
    graphdef = nnx.graphdef(model)
    schedule = make_schedule(config, task.info.train_examples)
    optimizer = optax.identity() if config.eval_only else make_optimizer(config, schedule)
    ema = config.optim.ema_decay > 0
    state = create_state(get_params(model), get_batch_stats(model), optimizer, mesh, ema=ema)
    train_step = None
    if not config.eval_only:
        step = make_train_step(task, graphdef, optimizer, config)
        # Compiled ahead: the compiler's time does not count in the first line's images/s.
        train_step = lower_train_step(step, state, task, config, mesh).compile()
    eval_step = make_eval_step(task.evaluator(), graphdef, mesh)
    return Experiment(config, task, mesh, graphdef, schedule, state, train_step, eval_step)


def lower_train_step(
    step: TrainStep, state: TrainState, task: Task, config: RunConfig, mesh: Mesh
) -> jax.stages.Lowered:
    """Lowers a training step for the devices of a mesh, ready to compile.

    Args:
        step: of `make_train_step`.
        state: arrays laid out over the mesh, whose memory the program takes, or the result of `abstract_state`.
        task: gives the shapes of batches.
        config: the run's.
        mesh: over devices that may be those of another machine.
    """
    layout = jax.tree.map(lambda leaf: leaf.sharding, state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(layout, NamedSharding(mesh, P())))
    sharding = batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
        for name, shape in task.batch_shapes(config.batch_size).items()
    }
    return jitted.lower(state, batch)


def check_batch_size(config: RunConfig, mesh: Mesh) -> None:
    """Raises InputError unless every device gets the same number of rows in each part of a batch."""
    rows = mesh.size * config.optim.accumulate
    _check_divisible("batch_size", config.batch_size, rows, "devices x optim.accumulate")


def _check_divisible(field: str, value: int, divisor: int, what: str) -> None:
    require(field, value, value % divisor == 0, f"a multiple of {divisor} ({what})")
