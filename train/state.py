"""What a step changes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from twins_jax import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of training after `step` steps.

    Attributes:
        step: int32 [].
        params: nested dicts of float32 arrays.
        opt_state: the optimizer's.
    """

    step: jax.Array
    params: Params
    opt_state: Any


def create_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
