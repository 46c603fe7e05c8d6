"""Runs a PyTorch module and its JAX counterpart with the same weights and inputs, in float32 and in float64."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx, traverse_util

from twins_jax.port.rules import to_ours

Arrays = dict[str, np.ndarray]
"""Outputs by name."""


class Outputs(NamedTuple):
    """What the four runs gave; `torch64` is the truth."""

    torch32: Arrays
    torch64: Arrays
    jax32: Arrays
    jax64: Arrays

    def check_float64(self) -> None:
        """The two compute the same function: nothing but float64's rounding separates them.

        The tolerance is about 1,000 times the largest error measured (1e-15 of the largest output) and a thousandth
        of what float32 rounding in a single place would cause (1e-8 and more).
        """
        for name, truth in self.torch64.items():
            assert self.jax64[name].dtype == np.float64
            assert self.jax64[name].shape == truth.shape
            assert relative_error(self.jax64[name], truth) < 1e-12, name

    def check_float32(self) -> None:
        """JAX rounds at most twice as much as PyTorch does; the 2 is the project's own criterion."""
        for name, truth in self.torch64.items():
            assert self.jax32[name].dtype == np.float32
            ours, theirs = relative_error(self.jax32[name], truth), relative_error(self.torch32[name], truth)
            assert ours <= 2 * theirs, f"{name}: {ours:.2e} of the largest output, PyTorch {theirs:.2e}"


def relative_error(array: np.ndarray, truth: np.ndarray) -> float:
    """The largest error relative to the largest output."""
    return float(np.abs(array - truth).max() / np.abs(truth).max())


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Adds noise to biases and norms, which start as zeros and ones: a mix-up of two of them would not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def ported(module: torch.nn.Module, torch_prefix: str, our_prefix: str) -> dict[str, Any]:
    """The parameters of one layer in our names and layout, given where it would stand in a whole model."""
    params = {}
    for name, tensor in module.state_dict().items():
        match = to_ours(f"{torch_prefix}.{name}")
        assert match, f"{torch_prefix}.{name}"
        params[match.name.removeprefix(f"{our_prefix}/")] = np.transpose(tensor.numpy(), match.axes)
    return traverse_util.unflatten_dict(params, sep="/")


def run_torch(run: Callable[[torch.Tensor], dict[str, torch.Tensor]], x: np.ndarray) -> Arrays:
    """Runs on a map or image [B, H, W, C]; `run` gets it as it is."""
    with torch.no_grad():
        return {name: output.numpy() for name, output in run(torch.from_numpy(x)).items()}


def run_jax(module: nnx.Module, params: dict[str, Any], run: Callable[..., dict[str, jax.Array]], x: np.ndarray) -> Arrays:
    """Runs `run(module, x)`, jitted, with these parameters in the dtype of x; `module` may be an abstract one."""
    with precision(x.dtype):
        graphdef, _ = nnx.split(module)
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype), params)
        jitted = jax.jit(lambda params, x: run(nnx.merge(graphdef, nnx.restore_int_paths(params)), x))
        return {name: np.asarray(output) for name, output in jitted(params, x).items()}


@contextlib.contextmanager
def precision(dtype: np.dtype):
    """float64 needs JAX's x64 mode, and NNX's LayerNorm then promotes float64 with float32, which "strict" forbids."""
    if dtype == np.float32:
        yield
    else:
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            yield
