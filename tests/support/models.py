import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

import twins_jax
from twins_jax import TwinsConfig

Module = TypeVar("Module", bound=nnx.Module)

# One of each family with the fewest blocks that have every kind of layer: compiling blocks takes the time.
PCPVT = TwinsConfig(
    embed_dims=(16, 32, 48, 64),
    num_heads=(1, 2, 3, 4),
    mlp_ratios=(8, 8, 4, 4),
    depths=(1, 1, 1, 1),
    sub_sampling_ratios=(8, 4, 2, 1),
    window_size=None,
)
SVT = dataclasses.replace(PCPVT, mlp_ratios=(4, 4, 4, 4), depths=(2, 1, 1, 1), window_size=7)

NANO = TwinsConfig(
    embed_dims=(8, 8, 16, 16),
    num_heads=(1, 1, 2, 2),
    mlp_ratios=(1, 1, 1, 1),
    depths=(2, 1, 1, 1),
    sub_sampling_ratios=(8, 4, 2, 1),
    window_size=7,
)
"""The model of the run in run_0_1.tar.gz."""


def random_module(make: Callable[[], Module]) -> Module:
    """A module with random values in every parameter, of a size that keeps activations near 1.

    Much faster than the initializers, and unlike them it leaves no bias at 0 and no scale at 1. A parameter's values
    depend on nothing but its path and shape. Running statistics are random, too, the variances near 1.
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
    stats = traverse_util.flatten_dict(twins_jax.get_batch_stats(module), sep="/")
    for path, leaf in stats.items():
        values = np.random.default_rng(zlib.crc32(path.encode())).uniform(-0.2, 0.2, leaf.shape)
        stats[path] = jnp.asarray(values + path.endswith("var"), leaf.dtype)
    if not stats:
        return module
    graphdef, params = nnx.graphdef(module), twins_jax.get_params(module)
    return twins_jax.merge_model(graphdef, params, traverse_util.unflatten_dict(stats, sep="/"))


def classifier(config: TwinsConfig, num_classes: int = 10) -> twins_jax.TwinsClassifier:
    return random_module(lambda: twins_jax.TwinsClassifier(config, num_classes, rngs=nnx.Rngs(0)))


def backbone(config: TwinsConfig) -> twins_jax.TwinsBackbone:
    return random_module(lambda: twins_jax.TwinsBackbone(config, rngs=nnx.Rngs(0)))


def run(model: nnx.Module, images: np.ndarray, key: jax.Array | None = None) -> Any:
    """The model's outputs, jitted."""
    apply, params = twins_jax.split_model(model)
    return jax.jit(apply)(params, images, key)


def random_array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


IMAGES = random_array(2, 45, 70, 3)
"""Of sides that are multiples of nothing."""


def named(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """path -> array."""
    return {"/".join(map(str, path)): np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(params).items()}


def relative_error(actual: Any, expected: Any) -> float:
    """The largest difference relative to the largest expected value."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())
