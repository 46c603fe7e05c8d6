from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.support.models import random_array
from twins_jax import ops
from twins_jax.ops import xla_cpu


def plain(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    margin = (kernel.shape[0] // 2,) * 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), (margin, margin), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def derivatives(function: Callable[..., jax.Array], x: np.ndarray, kernel: np.ndarray, stride: int) -> list[jax.Array]:
    """The value, the derivative along both arguments and along the kernel alone, and the gradients."""
    run = jax.jit(lambda x, kernel: function(x, kernel, stride=stride))
    value, moved = jax.jvp(run, (x, kernel), (x + 1, kernel - 1))
    cotangent = random_array(*value.shape, seed=5).astype(x.dtype)
    along_kernel = jax.jvp(lambda kernel: run(x, kernel), (kernel,), (kernel - 1,))[1]
    return [value, moved, along_kernel, *jax.vjp(run, x, kernel)[1](cotangent)]


@pytest.mark.parametrize("large", [0, 2**22], ids=["tap by tap", "at once"])
@pytest.mark.parametrize(("side", "stride"), [(3, 1), (5, 1), (1, 1), (3, 2), (1, 2)])
def test_equals_the_convolution(side: int, stride: int, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xla_cpu, "LARGE_MAP", large)
    with jax.enable_x64(True):
        x = random_array(2, 5, 4, 3).astype(np.float64)
        kernel = random_array(side, side, 3, 6, seed=1).astype(np.float64)

        def ours(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
            return ops.conv(x, kernel, stride=stride, dtype=jnp.float64)

        pairs = zip(derivatives(ours, x, kernel, stride), derivatives(plain, x, kernel, stride), strict=True)
        for actual, expected in pairs:
            np.testing.assert_allclose(actual, expected, atol=1e-13)


def test_large_maps_have_the_gradient_of_their_kernel_tap_by_tap() -> None:
    kernel = jax.ShapeDtypeStruct((3, 3, 64, 8), jnp.float32)

    def products(height: int) -> int:
        x = jax.ShapeDtypeStruct((1, height, 256, 64), jnp.float32)
        gradient = jax.grad(lambda kernel, x: ops.conv(x, kernel, dtype=jnp.float32).sum())
        return jax.jit(gradient).lower(kernel, x).as_text().count("dot_general")

    assert products(256) == 1  # in a loop
    assert products(255) == 0
