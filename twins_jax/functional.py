"""Models as pure functions of plain dicts: the low-overhead boundary for jit, grad and checkpoints."""

from collections.abc import Callable
from typing import Any, overload

import jax
from flax import nnx

from twins_jax.backbone import TwinsBackbone
from twins_jax.classifier import TwinsClassifier

Params = dict[str, Any]
"""A nested dict of arrays with string keys only, such as params["backbone"]["stages"]["0"]["peg"]["kernel"]."""

BatchStats = dict[str, Any]
"""A nested dict like `Params`, of the running statistics of BatchNorms; empty for a model without any."""


def get_params(model: nnx.Module) -> Params:
    """Returns the parameters of a model as nested dicts, in `param_dtype`; the arrays are shared, not copied."""
    return _to_dict(model, nnx.Param)


def get_batch_stats(model: nnx.Module) -> BatchStats:
    """Returns the running statistics of a model's BatchNorms as nested dicts; the arrays are shared, not copied."""
    return _to_dict(model, nnx.BatchStat)


def set_params(model: nnx.Module, params: Params) -> None:
    """Puts parameters into a model, in place.

    Args:
        model: any model of this library.
        params: as `get_params` gives them, with the names, shapes and dtypes of the model's own.
    """
    nnx.update(model, nnx.restore_int_paths(params))


def merge_model(graphdef: nnx.GraphDef[Any], params: Params, batch_stats: BatchStats | None = None) -> Any:
    """Makes a model from its graph definition, parameters and running statistics; the inverse of splitting it.

    Args:
        graphdef: the first value of `nnx.split(model)`.
        params: as `get_params` gives them.
        batch_stats: as `get_batch_stats` gives them; None or empty for a model without any.

    Returns:
        A model of the graph definition's type, which shares the arrays.
    """
    states = [nnx.restore_int_paths(tree) for tree in (params, batch_stats) if tree]
    return nnx.merge(graphdef, *states)


@overload
def split_model(model: TwinsBackbone | TwinsClassifier) -> tuple[Callable[..., Any], Params]: ...


@overload
def split_model(model: nnx.Module) -> tuple[Any, ...]: ...


def split_model(model: nnx.Module) -> tuple[Any, ...]:
    """Splits a model into a pure function, its parameters and, if it has any, its running statistics.

    Calling `jax.jit(apply)` costs a fraction of a millisecond where `nnx.jit(model)` costs tens: only the plain dicts
    cross the boundary, and the module tree exists at trace time alone.

    Args:
        model: any model of this library, called as model(images, rngs=...).

    Returns:
        For a model without BatchNorm `apply` and `params`: `apply(params, images, key=None)` computes `model(images)`,
        with dropout and stochastic depth drawn from the PRNG key if one is given; `params` are nested dicts of arrays.

        For a model with BatchNorm `apply`, `params` and `batch_stats`: `apply(params, batch_stats, images)` computes
        `model(images)` with the running statistics. `apply(params, batch_stats, images, key)` trains: BatchNorm takes
        the statistics of the batch, and the outputs come as a pair with the new running statistics.
    """
    graphdef, _ = nnx.split(model)
    batch_stats = get_batch_stats(model)

    def apply(params: Params, images: jax.Array, key: jax.Array | None = None) -> Any:
        return merge_model(graphdef, params)(images, rngs=None if key is None else nnx.Rngs(dropout=key))

    def apply_with_stats(
        params: Params, batch_stats: BatchStats, images: jax.Array, key: jax.Array | None = None
    ) -> Any:
        merged = merge_model(graphdef, params, batch_stats)
        if key is None:
            return merged(images)
        outputs = merged(images, rngs=nnx.Rngs(dropout=key))
        return outputs, get_batch_stats(merged)

    if batch_stats:
        return apply_with_stats, get_params(model), batch_stats
    return apply, get_params(model)


def _to_dict(model: nnx.Module, kind: type[nnx.Variable[Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = _keys_to_str(nnx.to_pure_dict(nnx.state(model, kind)))
    return tree


def _keys_to_str(tree: Any) -> Any:
    """Makes all keys strings: NNX gives lists of modules integer keys, which break checkpoints and sorting."""
    if not isinstance(tree, dict):
        return tree
    return {str(key): _keys_to_str(value) for key, value in tree.items()}
