"""Compares a mapping from names to arrays with a model, and lists all that does not fit."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from twins_jax.errors import InputError, require, shown

Shape = tuple[int, ...]
V = TypeVar("V", bound=nnx.Variable[Any])


def misfits(found: Mapping[str, object], expected: Mapping[str, object]) -> dict[str, str]:
    """Says which names are missing, left over or of another shape.

    Args:
        found: name -> shape of what is there.
        expected: name -> shape of what must be.

    Returns:
        name -> a line for an error: missing names first, then those left over, then other shapes. Empty if all fits.
    """
    lines = {name: f"  - {name} {shape} is missing" for name, shape in expected.items() if name not in found}
    lines |= {name: f"  + {shown(name)} {shape} is left over" for name, shape in found.items() if name not in expected}
    return lines | {
        name: f"  ! {name} has shape {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    }


def array_misfits(arrays: Mapping[str, Any], expected: Mapping[str, Shape | None], *, abstract: bool) -> dict[str, str]:
    """Says which of the values that a caller gives are no floating-point arrays of the expected names and shapes.

    Args:
        arrays: name -> value, as `by_name` gives them.
        expected: name -> shape; None where it is not known, and any will do.
        abstract: True if a `jax.ShapeDtypeStruct` is as good as an array.

    Returns:
        name -> line, as `misfits` gives them.
    """
    # Traced arrays are JAX's, too; strings, lists and the tensors of other libraries are no arrays here.
    kinds = (jax.Array, np.ndarray, np.generic, *([jax.ShapeDtypeStruct] if abstract else []))
    others = {name: type(value).__name__ for name, value in arrays.items() if not isinstance(value, kinds)}
    found = {name: others.get(name) or array.shape for name, array in arrays.items()}
    wanted = {name: found.get(name, "of any shape") if shape is None else shape for name, shape in expected.items()}
    lines = misfits(found, wanted)
    for name, shape in wanted.items():
        if name in others:
            lines[name] = f"  ! {name} holds {others[name]}, expected an array {shape}{_as_array_hint(arrays[name])}"
        elif name not in lines and not jnp.issubdtype(arrays[name].dtype, jnp.floating):
            lines[name] = f"  ! {name} has dtype {arrays[name].dtype}, expected floating-point"
        elif name not in lines and np.ma.is_masked(arrays[name]):
            lines[name] = f"  ! {name} has masked values, expected all of them"
    return lines


def _as_array_hint(value: object) -> str:
    """Returns how a tensor of PyTorch or a list becomes an array, for the end of a line; "" for other values."""
    if hasattr(value, "detach"):
        return ": np.asarray(tensor.detach().float().cpu())"
    return ": np.asarray(list)" if isinstance(value, (list, tuple)) else ""


def by_name(field: str, tree: object) -> dict[str, Any]:
    """Flattens nested mappings to path -> value, with paths such as "backbone/stages/0/peg/kernel".

    NNX's own states pass too, with integers as keys and variables as values.

    Args:
        field: the argument that gives the tree, for errors.
        tree: as a caller gives it.

    Raises:
        InputError: it is no mapping, has keys that are no names, or has one path twice.
    """
    require(field, type(tree), isinstance(tree, Mapping), "nested dicts of arrays, as get_params gives them")
    values: dict[str, Any] = {}
    _add(values, field, "", tree)
    return values


def _add(values: dict[str, Any], field: str, path: str, value: object) -> None:
    if isinstance(value, Mapping):
        for key, below in value.items():
            require(f"{field}: a key below {path!r}", key, isinstance(key, (str, int)), "a string")
            _add(values, field, f"{path}/{key}" if path else str(key), below)
    elif path in values:
        raise InputError(f"{field}: holds {path} twice, below a string and an integer")
    else:
        values[path] = value.get_value() if isinstance(value, nnx.Variable) else value


def declare(kind: type[V], value: jax.Array) -> V:
    """Makes a variable that keeps its shape in the model's graph definition, where `declared_shape` finds it."""
    return kind(value, declared_shape=value.shape)


def declared_shape(variable: nnx.Variable[Any]) -> Shape | None:
    """Returns the shape that `declare` keeps, whatever the variable holds now; None for variables made otherwise."""
    shape: Shape | None = variable.get_metadata("declared_shape", None)
    return shape
