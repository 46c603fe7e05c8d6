"""The forms for TPU: which programs take them, and that they compute what their functions do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike

from twins_jax import ops
from twins_jax.ops.xla_tpu import depthwise_convolution

CHANNELS = 8


def map_and_parameters(dtype: DTypeLike) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    shapes = (2, 5, 7, CHANNELS), (3, 3, 1, CHANNELS), (CHANNELS,)
    x, kernel, bias = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)
    return x.astype(dtype), kernel, bias


@pytest.mark.parametrize(
    ("platform", "dtype", "taken"), [("tpu", "bfloat16", True), ("tpu", "float32", False), ("cpu", "bfloat16", False)]
)
def test_programs_that_convolve(platform: str, dtype: str, *, taken: bool) -> None:
    """The forward pass, and both convolutions of the backward pass."""

    def loss(*arguments: jax.Array) -> jax.Array:
        return jnp.sin(ops.depthwise_conv(*arguments)).sum()

    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).trace(*map_and_parameters(dtype))
    text = program.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == (3 if taken else 0)


def test_convolution_is_the_sum_of_shifted_maps() -> None:
    """Values and gradients, in float64: the convolution against the form of other platforms."""
    with jax.enable_x64(True):
        arguments = [argument.astype(jnp.float64) for argument in map_and_parameters("float32")]
        expected, expected_vjp = jax.vjp(ops.depthwise_conv, *arguments)
        found, found_vjp = jax.vjp(depthwise_convolution, *arguments)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
        for mine, other in zip(found_vjp(jnp.cos(expected)), expected_vjp(jnp.cos(expected)), strict=True):
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-12)


def test_convolution_in_bfloat16_rounds_once() -> None:
    """Sums are rounded to bfloat16 once: an error of half a unit in its last place, of kernel and result each."""
    x, kernel, bias = map_and_parameters("bfloat16")
    found = depthwise_convolution(x, kernel, bias)
    assert found.dtype == jnp.float32
    rounded = kernel.astype(jnp.bfloat16).astype(jnp.float32)
    exact = ops.depthwise_conv(x.astype(jnp.float32), rounded, bias)
    np.testing.assert_allclose(found - bias, exact - bias, rtol=2**-8, atol=1e-5)
