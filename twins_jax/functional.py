"""Models as a pure function and a plain dict of parameters: the low-overhead boundary for jit, grad and checkpoints."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Params = dict[str, Any]
"""A nested dict of arrays with string keys only, such as params["backbone"]["stages"]["0"]["peg"]["kernel"]."""


def get_params(model: nnx.Module) -> Params:
    """The parameters of a model as nested dicts; the arrays are shared, not copied."""
    return _keys_to_str(nnx.to_pure_dict(nnx.state(model)))


def set_params(model: nnx.Module, params: Params) -> None:
    """Puts parameters into a model whose parameters have the same names, shapes and dtypes."""
    nnx.update(model, nnx.restore_int_paths(params))


def split_model(model: nnx.Module) -> tuple[Callable[..., Any], Params]:
    """Splits a model into a pure function and its parameters.

    Calling `jax.jit(apply)` costs a fraction of a millisecond where `nnx.jit(model)` costs tens: only the plain dict
    crosses the boundary, and the module tree exists at trace time alone.

    Args:
        model: a `TwinsClassifier` or `TwinsBackbone`.

    Returns:
        `apply(params, images, key=None)`, which computes `model(images)`, with dropout and stochastic depth drawn from
        the PRNG key if one is given; and `params`, nested dicts of arrays.
    """
    graphdef, _ = nnx.split(model)

    def apply(params: Params, images: jax.Array, key: jax.Array | None = None) -> Any:
        merged = nnx.merge(graphdef, nnx.restore_int_paths(params))
        return merged(images, rngs=None if key is None else nnx.Rngs(dropout=key))

    return apply, get_params(model)


def _keys_to_str(tree: Any) -> Any:
    """Lists of modules have integer keys in NNX, which neither checkpoints nor sorting mix well with strings."""
    if not isinstance(tree, dict):
        return tree
    return {str(key): _keys_to_str(value) for key, value in tree.items()}
