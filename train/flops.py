"""The arithmetic of a run, and the rate at which the device could do it."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun, jaxprs_in_params

from twins_jax import BatchStats, Params, merge_model

if TYPE_CHECKING:
    from .experiment import Experiment
    from .task import Batch, Task

TRAINING_FACTOR = 3
"""Forward passes in a training step, about: the backward pass has two matrix products for each one of the forward's."""


@dataclasses.dataclass(frozen=True)
class Performance:
    """Sizes and rates of a run.

    Attributes:
        parameters: of the model.
        forward_flops: floating-point operations of one image's forward pass.
        peak_flops: operations a second in large matrix products of the model's dtype, measured on one device.
        devices: over all processes.
    """

    parameters: int
    forward_flops: float
    peak_flops: float
    devices: int

    def mfu(self, images_per_s: float) -> float:
        """Returns the model-FLOPs utilization of training: the operations it needs over those the devices could do."""
        return TRAINING_FACTOR * self.forward_flops * images_per_s / (self.peak_flops * self.devices)

    def __str__(self) -> str:
        return (
            f"{self.parameters / 1e6:.1f} M parameters, {self.forward_flops / 1e9:.2f} GFLOPs an image forward, "
            f"{self.devices} device(s) of {self.peak_flops / 1e9:.0f} GFLOP/s in matrix products"
        )


def describe(experiment: "Experiment") -> Performance:
    """Counts parameters and operations of a run's model, and measures the device."""
    state = experiment.state
    return Performance(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        forward_flops=loss_flops(experiment.task, experiment.graphdef, state.params, state.batch_stats),
        peak_flops=matmul_rate(jnp.dtype(experiment.config.model["dtype"])),
        devices=jax.device_count(),
    )


def loss_flops(task: "Task", graphdef: nnx.GraphDef[Any], params: Params, batch_stats: BatchStats) -> float:
    """Operations of the loss of one example: its forward pass in training, auxiliary heads included.

    Args:
        task: whose loss it is.
        graphdef: of the model.
        params: arrays, or shapes and dtypes only.
        batch_stats: the same of running statistics.
    """
    key = jax.random.key(0)
    # Of two examples: a BatchNorm can train on no map of a single position, as pyramid pooling makes it of one image.
    batch = jax.eval_shape(lambda batch: task.augment(batch, [key, key]), task.batch_shapes(2))

    def loss(params: Params, batch_stats: BatchStats, batch: "Batch") -> jax.Array:
        return task.loss(merge_model(graphdef, params, batch_stats), batch, nnx.Rngs(dropout=key))[0]

    return _flops(loss, params, batch_stats, batch) / 2


def forward_flops(apply: Callable[..., jax.Array], params: Params, side: int) -> float:
    """Counts the operations of one image's forward pass, [1, side, side, 3]; `params` may be shapes and dtypes only."""
    return _flops(apply, params, jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))


def _flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Counts the operations of a program, those of a loop's body as often as it runs."""
    # Without the arrays' mesh, outside of which the body of a loop cannot be lowered.
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    return _flops_and_xlas(function, *shapes)[0]


def _flops_and_xlas(function: Callable[..., Any], *arguments: Any) -> tuple[float, float]:
    """The operations, and XLA's own count of them, which takes the body of a loop once."""
    traced = jax.jit(function).trace(*arguments)
    of_xla: float = traced.lower().cost_analysis()["flops"]
    flops = of_xla
    for length, body in _loops(traced.jaxpr.jaxpr):
        of_body, of_body_by_xla = _flops_and_xlas(jaxpr_as_fun(body), *body.in_avals)
        flops += length * of_body - of_body_by_xla
    return flops, of_xla


def _loops(jaxpr: Jaxpr) -> Iterator[tuple[int, ClosedJaxpr]]:
    """The length and the body of each `lax.scan` of a program, without those within a body.

    Those within the branches of a condition are left out: a branch may be for another platform than this one.
    """
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation.params["length"], equation.params["jaxpr"]
        elif equation.primitive.name != "cond":
            for inner in jaxprs_in_params(equation.params):
                yield from _loops(inner)


def matmul_rate(dtype: jnp.dtype) -> float:
    """Measures the operations a second of a large square matrix product on one device, the fastest of twenty runs."""
    side = 1024 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((side, side), dtype)
    return 2 * side**3 / _seconds(jax.jit(jnp.matmul), matrix, matrix)


def memory_rate() -> float:
    """Measures the bytes a second that one device moves in a pass over a large array, the fastest of twenty runs."""
    numbers = jnp.zeros(2**26 if jax.default_backend() == "cpu" else 2**29, jnp.float32)
    seconds = _seconds(jax.jit(lambda x: x + 1.0), numbers)
    return 2 * numbers.nbytes / seconds


def _seconds(program: Callable[..., jax.Array], *arguments: jax.Array) -> float:
    """Returns the seconds of the fastest of twenty runs: other work on the machine only adds to them."""
    program(*arguments).block_until_ready()
    seconds = []
    for _ in range(20):
        begin = time.perf_counter()
        program(*arguments).block_until_ready()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)
