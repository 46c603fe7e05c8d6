"""Gradients of bfloat16 computations, against the same in float32."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.support.models import SVT
from twins_jax.config import TwinsConfig
from twins_jax.layers import Linear, PatchConv
from twins_jax.peg import PositionalEncodingGenerator

Make = Callable[[TwinsConfig], nnx.Module]
LAYERS: dict[str, Make] = {
    "linear": lambda config: Linear(8, 8, **config.dtypes, rngs=nnx.Rngs(0)),
    "patch": lambda config: PatchConv(8, 8, 2, **config.dtypes, rngs=nnx.Rngs(0)),
    "peg": lambda config: PositionalEncodingGenerator(8, **config.dtypes, rngs=nnx.Rngs(0)),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_sums_over_positions_are_float32(make: Make) -> None:
    """100,000 positive terms: a bfloat16 sum stops at 256 of them."""
    images = np.random.default_rng(0).uniform(0.5, 1.5, (32, 56, 56, 8)).astype(np.float32)

    def gradients(dtype: str) -> dict[str, jax.Array]:
        graphdef, params = nnx.split(make(dataclasses.replace(SVT, dtype=jnp.dtype(dtype))))

        def loss(params: nnx.State) -> jax.Array:
            outputs: jax.Array = nnx.merge(graphdef, params)(jnp.asarray(images, dtype))
            return outputs.astype(jnp.float32).sum()

        return nnx.to_pure_dict(jax.jit(jax.grad(loss))(params))

    actual, expected = gradients("bfloat16"), gradients("float32")
    for name, truth in expected.items():
        assert actual[name].dtype == jnp.float32
        np.testing.assert_allclose(actual[name], truth, rtol=0.01, err_msg=name)  # bfloat16 has 8 bits
