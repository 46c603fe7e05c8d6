import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.models import random_array
from twins_jax import ops

SIZES = [((4, 6), (16, 12)), ((5, 3), (7, 11)), ((7, 9), (3, 4)), ((1, 2), (9, 1)), ((8, 8), (8, 3))]


def matrix(source: int, target: int) -> np.ndarray:
    """The weights [target, source]: each position's center, clamped, between two of the source's (PyTorch's rule)."""
    weights = np.zeros((target, source))
    for i in range(target):
        center = min(max((i + 0.5) * source / target - 0.5, 0), source - 1)
        low = int(center)
        weights[i, low] += 1 - (center - low)
        weights[i, min(low + 1, source - 1)] += center - low
    return weights


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_derivatives_are_those_of_a_linear_map(source: tuple[int, int], target: tuple[int, int]) -> None:
    weights = [matrix(*pair) for pair in zip(source, target, strict=True)]
    with jax.enable_x64(True):
        x, tangent = (jnp.asarray(random_array(2, *source, 3, seed=seed).astype(np.float64)) for seed in (0, 1))
        cotangent = random_array(2, *target, 3, seed=2).astype(np.float64)

        def resized(x: jax.Array) -> jax.Array:
            return ops.resize_bilinear(x, target)

        value, moved = jax.jvp(resized, (x,), (tangent,))
        (pulled,) = jax.vjp(resized, x)[1](cotangent)
        forward, backward = "hy,wx,byxc->bhwc", "hy,wx,bhwc->byxc"
        np.testing.assert_allclose(value, np.einsum(forward, *weights, x), atol=1e-14)
        np.testing.assert_allclose(moved, np.einsum(forward, *weights, tangent), atol=1e-14)
        np.testing.assert_allclose(pulled, np.einsum(backward, *weights, cotangent), atol=1e-14)


def test_reverse_mode_adds_to_no_position_of_an_array() -> None:
    x = jnp.zeros((1, 4, 4, 2))
    program = jax.jit(jax.grad(lambda x: jnp.square(ops.resize_bilinear(x, (16, 12))).sum())).lower(x).as_text()
    assert "gather" in program
    assert "scatter" not in program


def test_a_part_of_static_size() -> None:
    x = random_array(1, 6, 7, 2)
    actual = ops.resize_bilinear(x, (8, 9), source=(4, 5), target=(7, 9))
    np.testing.assert_array_equal(actual[:, :7], ops.resize_bilinear(x[:, :4, :5], (7, 9)))
    gradient = jax.grad(lambda x: ops.resize_bilinear(x, (8, 9), source=(4, 5), target=(7, 9))[:, :7].sum())(x)
    assert not gradient[:, 4:].any()
    assert not gradient[:, :, 5:].any()
    np.testing.assert_allclose(gradient.sum(), 7 * 9 * 2, rtol=1e-6)


def test_ranks_and_dtypes_are_given() -> None:
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        x = jnp.ones((1, 4, 4, 2), jnp.bfloat16)
        gradient = jax.grad(lambda x: ops.resize_bilinear(x, (9, 3)).astype(jnp.float32).sum())(x)
    assert gradient.dtype == jnp.bfloat16
