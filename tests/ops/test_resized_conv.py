import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.models import random_array
from twins_jax import ops

CASES = {
    "enlarged": [(13, 10, 8), (7, 5, 6), (4, 3, 5), (1, 1, 3)],
    "the first is enlarged, too": [(6, 7, 4), (2, 2, 9)],
    "larger maps": [(3, 4, 5), (6, 6, 4), (5, 9, 3)],
    "many positions, few channels": [(9, 40, 2), (8, 39, 1)],
    "of one position": [(1, 1, 3), (3, 2, 3), (1, 1, 2)],
}
"""Height, width and channels of the maps."""


def resized_first(maps: list[jax.Array], kernel: jax.Array) -> jax.Array:
    size = maps[0].shape[1], maps[0].shape[2]
    joined = jnp.concatenate([ops.resize_bilinear(x, size) for x in maps], axis=-1)
    return ops.conv(joined, kernel, dtype=kernel.dtype)


def inputs(shapes: list[tuple[int, int, int]], side: int = 3) -> tuple[list[np.ndarray], np.ndarray]:
    maps = [random_array(2, *shape, seed=i).astype(np.float64) for i, shape in enumerate(shapes)]
    return maps, random_array(side, side, sum(shape[2] for shape in shapes), 4, seed=9).astype(np.float64)


@pytest.mark.parametrize("shapes", CASES.values(), ids=CASES)
def test_equals_resizing_first(shapes: list[tuple[int, int, int]]) -> None:
    with jax.enable_x64(True):
        maps, kernel = jax.tree.map(jnp.asarray, inputs(shapes))
        expected, pull_back = jax.vjp(resized_first, maps, kernel)
        actual, pull_back_actual = jax.vjp(lambda *a: ops.resized_conv(*a, dtype=jnp.float64), maps, kernel)
        cotangent = random_array(*expected.shape, seed=3).astype(np.float64)
        # Rounding of float64 numbers of size 10.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13),
            (actual, pull_back_actual(cotangent)),
            (expected, pull_back(cotangent)),
        )


@pytest.mark.parametrize("side", [1, 5])
def test_kernels_of_other_sides(side: int) -> None:
    with jax.enable_x64(True):
        maps, kernel = jax.tree.map(jnp.asarray, inputs(CASES["enlarged"], side))
        actual = ops.resized_conv(maps, kernel, dtype=jnp.float64)
        np.testing.assert_allclose(actual, resized_first(maps, kernel), atol=1e-13)


def test_takes_fewer_operations_than_resizing_first() -> None:
    shapes = [(16, 16, 64), (8, 8, 64), (4, 4, 64), (2, 2, 64)]
    maps, kernel = jax.tree.map(np.float32, inputs(shapes))

    def flops(function: object) -> float:
        return jax.jit(function).lower(maps, kernel).cost_analysis()["flops"]  # type: ignore[call-overload, no-any-return]

    assert flops(lambda *a: ops.resized_conv(*a, dtype=jnp.float32)) < 0.55 * flops(resized_first)


def test_rounds_to_the_dtype_once() -> None:
    maps, kernel = inputs(CASES["enlarged"])
    actual = ops.resized_conv([jnp.asarray(x, jnp.float32) for x in maps], jnp.asarray(kernel), dtype=jnp.bfloat16)
    assert actual.dtype == jnp.bfloat16
    with jax.enable_x64(True):
        truth = np.asarray(resized_first(*jax.tree.map(jnp.asarray, (maps, kernel))))
    # Inputs, products, sums along one axis and the result are rounded, by 2^-8 of the largest result at most.
    np.testing.assert_allclose(np.asarray(actual, np.float64), truth, atol=4 * 2.0**-8 * np.abs(truth).max())
