"""Models as pure functions of plain dicts: the low-overhead boundary for jit, grad and checkpoints."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jax.typing import DTypeLike

from twins_jax.backbone import TwinsBackbone
from twins_jax.classifier import TwinsClassifier
from twins_jax.errors import InputError, require
from twins_jax.fit import array_misfits, by_name, declared_shape
from twins_jax.inputs import native
from twins_jax.segmentation.segmenter import TwinsSegmenter

Params = dict[str, Any]
"""A nested dict of arrays with string keys only, such as `params["backbone"]["stages"]["0"]["peg"]["kernel"]`."""

BatchStats = dict[str, Any]
"""A nested dict like `Params`, of the running statistics of BatchNorms; empty for a model without any."""


def get_params(model: nnx.Module) -> Params:
    """Returns the parameters of a model as nested dicts, in `param_dtype`; the arrays are shared, not copied."""
    return _to_dict(model, nnx.Param)


def get_batch_stats(model: nnx.Module) -> BatchStats:
    """Returns the running statistics of a model's BatchNorms as nested dicts; the arrays are shared, not copied."""
    return _to_dict(model, nnx.BatchStat)


class SetResult(NamedTuple):
    """The names that `set_params` left aside.

    Attributes:
        missing: paths of the model's parameters that kept their values.
        unused: paths in the given parameters that are not in the model: unknown, or of another shape or kind.
    """

    missing: tuple[str, ...]
    unused: tuple[str, ...]


def set_params(model: nnx.Module, params: Params, *, strict: bool = True) -> SetResult:
    """Puts parameters into a model, in place.

    Args:
        model: any model of this library.
        params: as `get_params` gives them, or an `nnx.State` of parameters. Arrays of JAX are shared, those of NumPy
            copied; a floating-point dtype other than the model's is cast to the model's.
        strict: refuse parameters that do not fit the model name by name and shape by shape. False: put in those that
            do.

    Returns:
        What was not put in; two empty tuples with `strict`.

    Raises:
        InputError: `params` are no nested dicts; or, with `strict`, lists every parameter that is missing, left over,
            of another shape, or no floating-point array. The model is as before then.
    """
    _check_model(model)
    require("strict", strict, isinstance(strict, bool), "True or False")
    own = _variables(model, nnx.Param)
    arrays = by_name("params", params)
    abstract = any(isinstance(variable.get_value(), jax.ShapeDtypeStruct) for _, variable in own.values())
    expected = {name: variable.get_value().shape for name, (_, variable) in own.items()}
    problems = array_misfits(arrays, expected, abstract=abstract)
    if strict:
        _refuse("params", problems.values())
    fitting = {name: place for name, place in own.items() if name not in problems}
    values = {path: _cast(arrays[name], variable.dtype) for name, (path, variable) in fitting.items()}
    nnx.update(model, traverse_util.unflatten_dict(values))
    return SetResult(
        missing=tuple(name for name in own if name in problems),
        unused=tuple(name for name in arrays if name in problems),
    )


def merge_model(graphdef: nnx.GraphDef[Any], params: Params, batch_stats: BatchStats | None = None) -> Any:
    """Makes a model from its graph definition, parameters and running statistics; the inverse of splitting it.

    Args:
        graphdef: the first value of `nnx.split(model)`.
        params: as `get_params` gives them, in any floating-point dtypes.
        batch_stats: as `get_batch_stats` gives them; None or empty for a model without any.

    Returns:
        A model of the graph definition's type, which shares the arrays.

    Raises:
        InputError: an argument is of another kind; or lists every array that is missing, left over, of another shape,
            or not of floating-point numbers.
    """
    require("graphdef", graphdef, isinstance(graphdef, nnx.GraphDef), "the first value of nnx.split(model)")
    # `nnx.merge` would give arrays to variables by their order alone, whatever their names.
    model = nnx.merge(graphdef, list(range(graphdef.num_leaves)))
    every = _variables(model, nnx.Variable)
    values: dict[tuple[Any, ...], Any] = {}
    for field, tree in (("params", params), ("batch_stats", {} if batch_stats is None else batch_stats)):
        arrays = by_name(field, tree)
        own = {name: v for name, (_, v) in every.items() if isinstance(v, nnx.Param) == (field == "params")}
        shapes = {name: declared_shape(variable) for name, variable in own.items()}
        _refuse(field, array_misfits(arrays, shapes, abstract=True).values())
        values |= {
            every[name][0]: native(array) if isinstance(array, (np.ndarray, np.generic)) else array
            for name, array in arrays.items()
        }
    nnx.update(model, traverse_util.unflatten_dict(values))
    return model


@overload
def split_model(
    model: TwinsClassifier | TwinsBackbone, method: Callable[..., Any] | None = None
) -> tuple[Callable[..., Any], Params]: ...


@overload
def split_model(
    model: TwinsSegmenter, method: Callable[..., Any] | None = None
) -> tuple[Callable[..., Any], Params, BatchStats]: ...


@overload
def split_model(model: nnx.Module, method: Callable[..., Any] | None = None) -> tuple[Any, ...]: ...


def split_model(model: nnx.Module, method: Callable[..., Any] | None = None) -> tuple[Any, ...]:
    """Splits a model into a pure function, its parameters and, if it has any, its running statistics.

    Calling `jax.jit(apply)` costs a fraction of a millisecond where `nnx.jit(model)` costs tens: only the plain dicts
    cross the boundary, and the module tree exists at trace time alone.

    Args:
        model: any model of this library, called as model(images, rngs=...).
        method: the function to compute in place of the model's call, called as method(model, images, rngs=...), such as
            `TwinsClassifier.forward_features`, or `functools.partial(TwinsBackbone.intermediates, blocks=(0, -1))`.

    Returns:
        For a model without BatchNorm `apply` and `params`: `apply(params, images, key=None)` computes `model(images)`,
        with dropout and stochastic depth drawn from the PRNG key if one is given; `params` are nested dicts of arrays.

        For a model with BatchNorm `apply`, `params` and `batch_stats`: `apply(params, batch_stats, images)` computes
        `model(images)` with the running statistics. `apply(params, batch_stats, images, key)` trains: BatchNorm takes
        the statistics of the batch, and the outputs come as a pair with the new running statistics.

    Raises:
        InputError: (a ValueError) an argument is of another kind.
    """
    _check_model(model)
    run = _call if method is None else method
    is_function = callable(run) and not inspect.ismethod(run)  # a bound method has its own model's weights
    require("method", method, is_function, f"None or a function of the model: {type(model).__name__}.METHOD")
    graphdef = nnx.graphdef(model)
    batch_stats = get_batch_stats(model)

    def apply(params: Params, images: jax.Array, key: jax.Array | None = None) -> Any:
        return run(merge_model(graphdef, params), images, rngs=_rngs(key))

    def apply_with_stats(
        params: Params, batch_stats: BatchStats, images: jax.Array, key: jax.Array | None = None
    ) -> Any:
        merged = merge_model(graphdef, params, batch_stats)
        outputs = run(merged, images, rngs=_rngs(key))
        return outputs if key is None else (outputs, get_batch_stats(merged))

    if batch_stats:
        return apply_with_stats, get_params(model), batch_stats
    return apply, get_params(model)


def _call(model: Any, images: jax.Array, *, rngs: nnx.Rngs | None) -> Any:
    return model(images, rngs=rngs)


def _to_dict(model: nnx.Module, kind: type[nnx.Variable[Any]]) -> dict[str, Any]:
    """The values of a kind, with strings for NNX's integer keys, which break checkpoints and sorting."""
    _check_model(model)
    values = {tuple(name.split("/")): variable.get_value() for name, (_, variable) in _variables(model, kind).items()}
    tree: dict[str, Any] = traverse_util.unflatten_dict(values)
    return tree


def _check_model(model: nnx.Module) -> None:
    require("model", type(model), isinstance(model, nnx.Module), "a model, an nnx.Module")


def _rngs(key: jax.Array | np.ndarray | None) -> nnx.Rngs | None:
    """Returns the streams of a model's call, from a typed key or the numbers that `jax.random.PRNGKey` makes."""
    if key is None:
        return None
    allowed = "a PRNG key, such as jax.random.key(0)"
    require("key", key, isinstance(key, (jax.Array, np.ndarray)), allowed)
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    require("key", key, is_typed or jnp.issubdtype(key.dtype, np.uint32), allowed)
    typed = key if isinstance(key, jax.Array) else jnp.asarray(native(key))
    if not is_typed:
        try:
            typed = jax.random.wrap_key_data(typed)
        except (TypeError, ValueError):  # of a length that is not the generator's
            require("key", key, False, allowed)
    require("key", key, typed.ndim == 0, f"{allowed}, and a single one")
    return nnx.Rngs(dropout=typed)


def _variables(
    model: nnx.Module, kind: type[nnx.Variable[Any]]
) -> dict[str, tuple[tuple[Any, ...], nnx.Variable[Any]]]:
    """The variables of a kind, by name, with their paths in NNX.

    `nnx.state`, too, has them, but leaves them in a reference cycle, which holds the memory until Python's garbage
    collector finds it, and which `jax_array_garbage_collection_guard` forbids.
    """
    nodes = nnx.iter_graph(model)
    return {"/".join(map(str, path)): (path, node) for path, node in nodes if isinstance(node, kind)}


def _cast(array: Any, dtype: DTypeLike) -> Any:
    """Returns an array of JAX or NumPy as one of JAX in a dtype, which shares memory only with JAX's."""
    if isinstance(array, jax.ShapeDtypeStruct):
        return array.update(dtype=dtype)
    if isinstance(array, jax.Array):
        return array if array.dtype == dtype else array.astype(dtype)
    return jnp.array(array, dtype)


def _refuse(field: str, problems: Iterable[str]) -> None:
    lines = list(problems)
    if lines:
        raise InputError("\n".join([f"{field}: {len(lines)} arrays do not fit the model", *lines]))
