"""The state that a step changes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from twins_jax import BatchStats, Params
from twins_jax.sharding import shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of training after `step` steps.

    Attributes:
        step: int32 [].
        params: nested dicts of float32 arrays.
        batch_stats: running statistics of the model's BatchNorms, float32; empty for a model without any. The
            optimizer, the decay mask and the moving average do not see them.
        opt_state: the optimizer's.
        ema: moving average of the parameters, or None. Evaluated with `batch_stats`, which are those of the parameters.
    """

    step: jax.Array
    params: Params
    batch_stats: BatchStats
    opt_state: Any
    ema: Params | None


def abstract_state(
    params: Params, batch_stats: BatchStats, optimizer: optax.GradientTransformation, mesh: Mesh, *, ema: bool
) -> TrainState:
    """Returns the shapes, dtypes and layout of the state before the first step, with no memory behind them.

    Args:
        params: the parameters, or their shapes and dtypes.
        batch_stats: the running statistics, or their shapes and dtypes.
        optimizer: of the parameters.
        mesh: over which `twins_jax.sharding` lays it out; its devices may be another machine's.
        ema: keep a moving average.

    Returns:
        A `TrainState` of `jax.ShapeDtypeStruct`, each with its sharding.
    """
    shapes = jax.eval_shape(_initializer(optimizer, ema=ema), params, batch_stats)

    def place(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    state: TrainState = jax.tree.map(place, shapes, shardings(shapes, mesh))
    return state


def create_state(
    params: Params, batch_stats: BatchStats, optimizer: optax.GradientTransformation, mesh: Mesh, *, ema: bool
) -> TrainState:
    """Creates the state before the first step, laid out over the mesh by `twins_jax.sharding`.

    Args:
        params: the initial parameters, the same in every process.
        batch_stats: the initial running statistics, the same in every process.
        optimizer: of the parameters.
        mesh: of the devices of all processes.
        ema: keep a moving average, which starts at the parameters.
    """

    def distribute(leaf: jax.Array, sharding: jax.sharding.NamedSharding) -> jax.Array:
        on_host = np.asarray(leaf)
        return jax.make_array_from_callback(on_host.shape, sharding, lambda index: on_host[index])

    params, batch_stats = (jax.tree.map(distribute, tree, shardings(tree, mesh)) for tree in (params, batch_stats))
    abstract = abstract_state(params, batch_stats, optimizer, mesh, ema=ema)
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(_initializer(optimizer, ema=ema), out_shardings=layout, donate_argnums=(0, 1))(params, batch_stats)


def _initializer(optimizer: optax.GradientTransformation, *, ema: bool) -> Callable[[Params, BatchStats], TrainState]:
    def init(params: Params, batch_stats: BatchStats) -> TrainState:
        average = jax.tree.map(jnp.copy, params) if ema else None
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), average)

    return init
