from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twins_jax.ops.xla_cpu import fusion_barrier, gradient_barrier


def chain(boundary: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sin(boundary(boundary(x) * x)))


@pytest.mark.parametrize("first", [-1.5, 0.0, 2.0, np.inf])
def test_values_and_derivatives_are_those_of_the_identity(first: float) -> None:
    x = jnp.asarray([[first, 0.5], [-0.25, 3.0]])
    for derivative in (lambda f: f, jax.grad, jax.jacfwd, lambda f: jax.vmap(jax.grad(f))):
        expected = derivative(lambda x: chain(lambda x: x, x))(x)
        np.testing.assert_array_equal(jax.jit(derivative(lambda x: chain(gradient_barrier, x)))(x), expected)


def test_cotangents_keep_nan_and_infinity() -> None:
    _, transpose = jax.vjp(gradient_barrier, jnp.ones(3))
    cotangent = jnp.asarray([np.nan, -np.inf, np.inf])
    np.testing.assert_array_equal(jax.jit(transpose)(cotangent)[0], cotangent)


def test_the_cpus_compiler_leaves_the_boundary_in() -> None:
    compiled = jax.jit(jax.grad(lambda x: chain(gradient_barrier, x))).lower(jnp.ones((8, 8))).compile()
    assert compiled.as_text().count(" conditional(") == 2


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_fusion_barrier_changes_no_bit(dtype: str) -> None:
    with jax.enable_x64(True):
        info = jnp.finfo(dtype)
        x = jnp.asarray([0.0, -0.0, 1.0, -1 / 3, info.max, info.smallest_normal, np.inf, -np.inf], dtype)
        found = jax.jit(fusion_barrier)(x)
        assert found.dtype == x.dtype
        assert np.asarray(found).tobytes() == np.asarray(x).tobytes()


def test_the_compiler_leaves_the_fusion_barrier_in() -> None:
    compiled = jax.jit(lambda x: fusion_barrier(x * 2).sum()).lower(jnp.ones((8, 8))).compile()
    assert "reduce-precision(" in compiled.as_text()
