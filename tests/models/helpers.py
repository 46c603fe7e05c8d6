import contextlib
import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

import twins_jax

Module = TypeVar("Module", bound=nnx.Module)


@contextlib.contextmanager
def float64_mode() -> Iterator[None]:
    """For models in float64; NNX's LayerNorm promotes it with float32, which "strict" forbids."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def random_module(make: Callable[[], Module]) -> Module:
    """A module with random values in every parameter, sized so that activations stay near 1.

    Much faster than the initialisers, and unlike them it leaves no bias at 0 and no scale at 1. A parameter's values
    depend on nothing but its path and shape.
    """
    module = nnx.eval_shape(make)
    params = traverse_util.flatten_dict(twins_jax.get_params(module), sep="/")
    for path, leaf in params.items():
        values = np.random.default_rng(zlib.crc32(path.encode())).standard_normal(leaf.shape)
        if path.endswith("kernel"):
            values /= math.sqrt(math.prod(leaf.shape[:-1]))
        else:
            values = 0.1 * values + path.endswith("scale")
        params[path] = jnp.asarray(values, leaf.dtype)
    twins_jax.set_params(module, traverse_util.unflatten_dict(params, sep="/"))
    return module


def tiny(**arguments: Any) -> twins_jax.TwinsClassifier:
    arguments = {"num_classes": 10} | arguments
    return random_module(lambda: twins_jax.create_model("twins_svt_tiny", rngs=nnx.Rngs(0), **arguments))


def tiny_backbone(**arguments: Any) -> twins_jax.TwinsBackbone:
    return random_module(lambda: twins_jax.create_backbone("twins_svt_tiny", rngs=nnx.Rngs(0), **arguments))


def run(model: nnx.Module, images: jax.Array, key: jax.Array | None = None) -> Any:
    """The model's outputs, jitted."""
    apply, params = twins_jax.split_model(model)
    return jax.jit(apply)(params, images, key)


def random_array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def named(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """path -> array."""
    return {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(params, sep="/").items()}


def relative_error(actual: Any, expected: Any) -> float:
    """The largest difference relative to the largest expected value."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())
