"""Turns what a file holds into the complete parameters of one model, or says everything that does not fit."""

import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from flax import traverse_util

from twins_jax.errors import InputError
from twins_jax.functional import Params
from twins_jax.port import orbax_io, torch_io
from twins_jax.port.infer import Inferred, Shape, infer
from twins_jax.port.rules import to_ours, to_torch


class Weights(NamedTuple):
    """Tensors as a file holds them, not yet known to fit any model.

    Attributes:
        label: what they were read from, for errors.
        tensors: name -> array in the file's names, layout and dtypes.
        is_torch: names and layout are PyTorch's; otherwise ours.
    """

    label: str
    tensors: Mapping[str, np.ndarray]
    is_torch: bool

    def infer(self, name: str | None = None) -> Inferred:
        """Which model these weights belong to; `name` is its variant, if that is known.

        Raises:
            InputError: they look like no known variant.
        """
        shapes = {}
        for tensor_name, tensor in self.tensors.items():
            if not self.is_torch:
                shapes[tensor_name] = tensor.shape
            elif (match := to_ours(tensor_name)) and len(match.axes) == tensor.ndim:
                shapes[match.name] = tuple(tensor.shape[axis] for axis in match.axes)
        return infer(shapes, self.label, name)

    def fit(self, expected: Mapping[str, Shape]) -> Params:
        """The parameters of a model, using every tensor exactly once.

        Args:
            expected: path -> shape of every parameter of the model, in our names and layout.

        Returns:
            Nested dicts of arrays in our layout and the file's dtypes.

        Raises:
            InputError: lists every name, in the file's own terms, that is missing, left over or of another shape.
        """
        if not self.is_torch:
            self._check_names(expected)
            return traverse_util.unflatten_dict(dict(self.tensors), sep="/")
        expected_in_torch, paths = {}, {}
        for path, shape in expected.items():
            match = to_torch(path)
            if match is None:
                raise KeyError(f"the table of names has no row for {path}")
            expected_in_torch[match.name] = tuple(shape[axis] for axis in np.argsort(match.axes))
            paths[path] = match
        self._check_names(expected_in_torch)
        params = {path: np.transpose(self.tensors[match.name], match.axes) for path, match in paths.items()}
        return traverse_util.unflatten_dict(params, sep="/")

    def _check_names(self, expected: Mapping[str, Shape]) -> None:
        found = {name: tensor.shape for name, tensor in self.tensors.items()}
        problems = [f"  - {name} {shape} is missing" for name, shape in expected.items() if name not in found]
        problems += [f"  + {name} {shape} is left over" for name, shape in found.items() if name not in expected]
        problems += [
            f"  ! {name} has shape {found[name]}, expected {shape}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ]
        if problems:
            raise InputError("\n".join([f"{self.label}: {len(problems)} tensors do not fit the model", *problems]))


def read_weights(source: str | os.PathLike[str]) -> Weights:
    """Reads an Orbax folder of our parameters, or a PyTorch checkpoint with the names of timm or upstream.

    Raises:
        InputError: the source is missing or cannot be read; see `orbax_io` and `torch_io`.
    """
    source = os.fspath(source)
    if os.path.isdir(source):
        return Weights(source, orbax_io.read_params(source), is_torch=False)
    return Weights(source, torch_io.read_state_dict(source), is_torch=True)
