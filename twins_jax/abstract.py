"""Models of shapes alone."""

from collections.abc import Callable
from typing import TypeVar

import jax
from flax import nnx

Module = TypeVar("Module", bound=nnx.Module)


class _OneKey(nnx.Rngs):
    """Streams of one and the same key: nothing is drawn, and to trace the counting of draws takes most of the time."""

    def params(self) -> jax.Array:
        return jax.random.key(0)


def abstract_model(make: Callable[[nnx.Rngs], Module]) -> Module:
    """Returns the model that `make` creates with `jax.ShapeDtypeStruct` in the place of each parameter."""
    model: Module = nnx.eval_shape(lambda: make(_OneKey(0)))
    return model
