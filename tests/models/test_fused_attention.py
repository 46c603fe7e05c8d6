"""The fused attentions, interpreted, against the plain formulation and its float64 values; and which one is chosen."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import twins_jax
from tests.models.helpers import classifier, float64_mode, named, random_array, random_module, relative_error
from twins_jax import InputError, TwinsConfig
from twins_jax.attention import GlobalSubSampledAttention, LocallyGroupedAttention
from twins_jax.config import variant_config
from twins_jax.fused import choose as fused

CONFIG = variant_config("twins_svt_tiny")


def lsa(config: TwinsConfig, dim: int, heads: int) -> nnx.Module:
    return random_module(lambda: LocallyGroupedAttention(dim, heads, 7, config=config, rngs=nnx.Rngs(0)))


def gsa(config: TwinsConfig, dim: int, heads: int) -> nnx.Module:
    return random_module(lambda: GlobalSubSampledAttention(dim, heads, 2, config=config, rngs=nnx.Rngs(0)))


Make = Callable[[TwinsConfig, int, int], nnx.Module]
CASES: dict[str, tuple[Make, tuple[int, int], int, int, str]] = {
    # layer, map, channels, heads, window padding
    "lsa, tiled": (lsa, (7, 14), 64, 2, "zero"),
    "lsa, padded": (lsa, (10, 16), 64, 2, "zero"),
    "lsa, padded one way": (lsa, (7, 9), 64, 1, "zero"),
    "lsa, masked": (lsa, (10, 16), 64, 2, "mask"),
    "lsa, masked, padded one way": (lsa, (7, 9), 32, 1, "mask"),
    "gsa, one tile of keys": (gsa, (9, 14), 64, 2, "zero"),
    "gsa, all tiles full": (gsa, (16, 16), 64, 1, "zero"),
    "gsa, two parts of the queries": (gsa, (2, 70), 16, 1, "zero"),
    "gsa, two tiles of keys": (gsa, (19, 18), 32, 1, "zero"),
}


def outputs_and_gradients(case: str, implementation: str, dtype: str) -> dict[str, np.ndarray]:
    """Of a layer with rounded weights and input, so that all dtypes compute on the same numbers."""
    make, size, dim, heads, padding = CASES[case]
    config = dataclasses.replace(
        CONFIG,
        window_padding=padding,
        attention_implementation=implementation,
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.dtype("float64" if dtype == "float64" else "float32"),
    )
    layer = make(dataclasses.replace(config, param_dtype=jnp.float32), dim, heads)
    graphdef, params = nnx.split(layer)
    graphdef = nnx.split(nnx.eval_shape(lambda: make(config, dim, heads)))[0]
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(config.param_dtype), params)
    x, cotangent = (jnp.asarray(random_array(2, *size, dim, seed=i), jnp.bfloat16).astype(dtype) for i in (1, 2))

    @jax.jit
    def run(params: Any, x: jax.Array, cotangent: jax.Array) -> Any:
        outputs, vjp = jax.vjp(lambda params, x: nnx.merge(graphdef, params)(x), params, x)
        return outputs, vjp(cotangent)

    outputs, (d_params, d_x) = run(params, x, cotangent)
    assert outputs.dtype == d_x.dtype == x.dtype
    return named(twins_jax.get_params(nnx.merge(graphdef, d_params))) | {
        "outputs": np.asarray(outputs, np.float64),
        "d_x": np.asarray(d_x, np.float64),
    }


@pytest.mark.parametrize("case", CASES)
def test_kernels_round_as_little_as_the_plain_formulation(case: str) -> None:
    """Forward and backward, in float32 and bfloat16, against the plain formulation in float64."""
    with float64_mode():
        truth = outputs_and_gradients(case, "xla", "float64")
    for dtype in ("float32", "bfloat16"):
        plain = outputs_and_gradients(case, "xla", dtype)
        kernels = outputs_and_gradients(case, "pallas", dtype)
        for name, expected in truth.items():
            found, allowed = (relative_error(values[name], expected) for values in (kernels, plain))
            if name in ("k/bias",):
                continue
            assert found <= 2 * allowed + float(jnp.finfo(dtype).eps) / 8, (dtype, name, found, allowed)
