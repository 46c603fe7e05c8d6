"""Runs a PyTorch module and its JAX counterpart with the same weights and inputs, in float32 and in float64."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx, traverse_util
from jax.typing import DTypeLike
from safetensors.torch import save_file

import twins_jax
from tests.support.compilation import fast_compilation
from tests.support.timm_twins import make_timm
from twins_jax.config import variant_config

Model = TypeVar("Model", bound=nnx.Module)
Arrays = dict[str, np.ndarray]
"""Outputs by name."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One input's outputs.

    Attributes:
        torch32: PyTorch's in float32.
        torch64: PyTorch's in float64: the truth.
        run_jax: computes ours in the dtype it is given.
    """

    torch32: Arrays
    torch64: Arrays
    run_jax: Callable[[DTypeLike], Arrays]

    def check_float64(self) -> None:
        """The two compute the same function: nothing but float64's rounding separates them.

        The tolerance is 500 times the largest error measured, 2e-15, and far below the error of rounding to float32 in
        any one place, about 1e-8.
        """
        ours = self.run_jax(np.float64)
        for name, truth in self.torch64.items():
            assert ours[name].dtype == np.float64
            assert ours[name].shape == truth.shape
            assert relative_error(ours[name], truth) < 1e-12, name

    def check_float32(self) -> None:
        """Ours rounds at most twice as much as PyTorch does; the 2 is the project's own criterion."""
        ours = self.run_jax(np.float32)
        for name, truth in self.torch64.items():
            assert ours[name].dtype == np.float32
            error, reference = relative_error(ours[name], truth), relative_error(self.torch32[name], truth)
            assert error <= 2 * reference, f"{name}: {error:.2e} of the largest output, PyTorch {reference:.2e}"


def relative_error(array: np.ndarray, truth: np.ndarray) -> float:
    """The largest error relative to the largest output."""
    return float(np.abs(array - truth).max() / np.abs(truth).max())


def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Makes every parameter count, and none too much.

    Biases and norms start as zeros and ones: without noise, a mix-up of two of them would not show. timm's
    `trunc_normal_(std=0.02)` gives its bound, 2, about once in 2^24 draws. The rounding of the one value that this
    weight multiplies would be the largest error, and comparing the largest errors a matter of luck.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            elif parameter.ndim == 2:
                parameter.clamp_(-0.2, 0.2)
    return module.eval()


def ported(module: torch.nn.Module, names: Mapping[str, str]) -> dict[str, Any]:
    """The parameters of one layer in our names and axes, by rules of its own that know nothing of `twins_jax.port`.

    Args:
        module: the layer.
        names: the parts of PyTorch's dotted names to replace, where ours differ in more than the last part.
    """
    params = {}
    for name, tensor in module.state_dict().items():
        path = f".{name}"
        for theirs, ours in names.items():
            path = path.replace(theirs, ours)
        if tensor.ndim == 4:  # [out, in, h, w]
            path, tensor = path.replace(".weight", ".kernel"), tensor.permute(2, 3, 1, 0)
        elif tensor.ndim == 2:  # [out, in]
            path, tensor = path.replace(".weight", ".kernel"), tensor.T
        params[path[1:].replace(".weight", ".scale").replace("weight", "scale")] = tensor.numpy().copy()
    return traverse_util.unflatten_dict(params, sep=".")


def load(weights: Mapping[str, torch.Tensor], **overrides: Any) -> twins_jax.TwinsClassifier:
    """Our classifier with the weights of a whole state dict, by way of a file."""
    return _load(twins_jax.from_pretrained, weights, overrides)


def load_backbone(weights: Mapping[str, torch.Tensor], **overrides: Any) -> twins_jax.TwinsBackbone:
    """Our backbone with the weights of a whole state dict, by way of a file."""
    return _load(twins_jax.backbone_from_pretrained, weights, overrides)


def _load(read: Callable[..., Model], weights: Mapping[str, torch.Tensor], overrides: Mapping[str, Any]) -> Model:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own would keep gigabytes of weights for three runs
        file = Path(folder, "weights.safetensors")
        save_file(dict(weights), file)
        return read(file, **overrides)


def make_tiny(timm: ModuleType) -> Any:
    """timm's twin of our twins_svt_tiny, which has no name in timm."""
    torch.manual_seed(0)
    return randomize(make_timm(timm, variant_config("twins_svt_tiny")))


def compare(
    run_theirs: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    ours: Callable[[DTypeLike], nnx.Module],
    run_ours: Callable[[Any, jax.Array], dict[str, jax.Array]],
    params: dict[str, Any],
    x: np.ndarray,
) -> Comparison:
    """Prepares a comparison, of which PyTorch's part is done.

    Args:
        run_theirs: computes PyTorch's outputs in the dtype of x, to which it casts float32 weights.
        ours: makes the counterpart for a dtype, of which only the shapes and settings are used.
        run_ours: computes our outputs from the counterpart with `params` in it and x.
        params: in our names and axes.
        x: float32, the input of all runs.
    """

    def run_jax(dtype: DTypeLike) -> Arrays:
        with precision(dtype):
            graphdef, _ = nnx.split(nnx.eval_shape(lambda: ours(dtype)))
            cast_params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
            jitted = jax.jit(lambda params, x: run_ours(nnx.merge(graphdef, nnx.restore_int_paths(params)), x))
            return {name: np.asarray(array) for name, array in jitted(cast_params, x.astype(dtype)).items()}

    with torch.no_grad():
        torch32 = {name: array.numpy() for name, array in run_theirs(torch.from_numpy(x)).items()}
        torch64 = {name: array.numpy() for name, array in run_theirs(torch.from_numpy(x).double()).items()}
    return Comparison(torch32, torch64, run_jax)


def compare_models(
    run_theirs: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    ours: twins_jax.TwinsClassifier | twins_jax.TwinsBackbone,
    images: np.ndarray,
) -> Comparison:
    """Prepares a comparison of the maps, and of a classifier's logits or pooled features.

    Args:
        run_theirs: as in `compare`; gives "map 0" to "map 3", and "logits".
        ours: in float32, with the same weights.
        images: float32 [B, H, W, in_channels].
    """

    def in_dtype(dtype: DTypeLike) -> nnx.Module:
        if dtype == np.float32:
            return ours
        config = dataclasses.replace(ours.config, dtype=dtype, param_dtype=dtype)
        if isinstance(ours, twins_jax.TwinsBackbone):
            return twins_jax.TwinsBackbone(config, rngs=nnx.Rngs(0))
        return twins_jax.TwinsClassifier(config, ours.num_classes, rngs=nnx.Rngs(0))

    return compare(run_theirs, in_dtype, _maps_and_logits, twins_jax.get_params(ours), images)


def _maps_and_logits(model: Callable[[jax.Array], Any], images: jax.Array) -> dict[str, jax.Array]:
    """The maps that the backbone gives, within a classifier on the way to its logits."""
    maps: list[jax.Array] = []
    backbone = twins_jax.TwinsBackbone.__call__

    def recording(*args: Any, **kwargs: Any) -> tuple[jax.Array, ...]:
        maps.extend(backbone(*args, **kwargs))
        return tuple(maps)

    with mock.patch.object(twins_jax.TwinsBackbone, "__call__", recording):
        result = model(images)
    logits = {} if isinstance(result, tuple) else {"logits": result}
    return {f"map {i}": m for i, m in enumerate(maps)} | logits


@contextlib.contextmanager
def precision(dtype: DTypeLike) -> Iterator[None]:
    """The modes of JAX that a comparison in this dtype needs.

    float32: sums in blocks (see `ops.xla_cpu.blocked_dot`), as PyTorch's are. float64: the x64 mode, without blocks,
    compiled fast: it has rounding to spare.
    """
    if np.dtype(dtype) == np.float32:
        with jax.default_matmul_precision("highest"):
            yield
    else:
        with jax.enable_x64(True), fast_compilation():
            yield
