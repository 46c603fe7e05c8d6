"""One pass over the evaluation split."""

import collections
from collections.abc import Callable, Iterable
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from twins_jax import BatchStats, Params, merge_model

from .task import Batch, Evaluator

MAX_IN_FLIGHT = 2
"""Steps that may be queued on the device: enough to keep it busy, few enough that their batches fit in memory."""

EvalStep = Callable[[Params, BatchStats, Batch], Any]


def make_eval_step(evaluator: Evaluator, graphdef: nnx.GraphDef[Any], mesh: Mesh) -> EvalStep:
    """Jits an evaluator's step.

    Args:
        evaluator: has the step, which is the same function for every evaluator of one task.
        graphdef: of the model.
        mesh: the layout of parameters and batches; every process gets the outputs.

    Returns:
        (params, batch_stats, batch) -> the outputs of `Evaluator.step`.
    """

    def eval_step(params: Params, batch_stats: BatchStats, batch: Batch) -> Any:
        return evaluator.step(merge_model(graphdef, params, batch_stats), batch)

    return jax.jit(eval_step, out_shardings=NamedSharding(mesh, P()))


def evaluate(
    evaluator: Evaluator, eval_step: EvalStep, params: Params, batch_stats: BatchStats, batches: Iterable[Batch]
) -> dict[str, float | int]:
    """Evaluates one pass over `batches` with a new evaluator, and returns its result."""
    in_flight: collections.deque[Any] = collections.deque()
    for batch in batches:
        outputs = eval_step(params, batch_stats, batch)
        evaluator.update(outputs, batch)
        in_flight.append(outputs)
        if len(in_flight) > MAX_IN_FLIGHT:
            jax.block_until_ready(in_flight.popleft())
    return evaluator.result()
