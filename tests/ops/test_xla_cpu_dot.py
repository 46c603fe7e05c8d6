import jax
import numpy as np
import pytest

from tests.support.models import random_array
from twins_jax.ops.xla_cpu import BLOCK, blocked_dot

UNIT_ROUNDOFF = 2.0**-24
"""The largest relative error of one float32 operation."""
LENGTHS = [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 1000]


def bound(x: np.ndarray, kernel: np.ndarray, additions: int) -> np.ndarray:
    """The error that no float32 dot product with this many additions in a row exceeds (Higham 2002, section 3.1)."""
    n = additions + 1
    return n * UNIT_ROUNDOFF / (1 - n * UNIT_ROUNDOFF) * product(np.abs(x), np.abs(kernel))


def product(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ kernel.astype(np.float64)


@pytest.mark.parametrize("batch", [(), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("precision", [None, "highest", "float32"])
def test_equals_numpy(precision: str | None, length: int, batch: tuple[int, ...]) -> None:
    x, kernel = random_array(*batch, length), random_array(length, 7, seed=1)
    with jax.default_matmul_precision(precision):
        actual = blocked_dot(x, kernel)
    assert actual.shape == (*batch, 7)
    assert actual.dtype == np.float32
    assert (np.abs(actual - product(x, kernel)) <= bound(x, kernel, length)).all()


def test_highest_sums_in_blocks() -> None:
    length = 4096
    x, kernel = random_array(64, length), random_array(length, 64, seed=1)
    truth = product(x, kernel)

    def error(precision: str | None) -> np.ndarray:
        with jax.default_matmul_precision(precision):
            return np.abs(np.asarray(blocked_dot(x, kernel)) - truth)

    assert np.sqrt((error("highest") ** 2).mean()) < 0.5 * np.sqrt((error(None) ** 2).mean())
    assert (error("highest") <= bound(x, kernel, BLOCK + length // BLOCK)).all()


def test_gradients_under_highest() -> None:
    x, kernel, weights = random_array(5, 100), random_array(100, 7, seed=1), random_array(5, 7, seed=2)
    with jax.default_matmul_precision("highest"):
        dx, dkernel = jax.grad(lambda x, kernel: (blocked_dot(x, kernel) * weights).sum(), argnums=(0, 1))(x, kernel)
    # Short sums in float32.
    np.testing.assert_allclose(dx, weights @ kernel.T, atol=1e-5)
    np.testing.assert_allclose(dkernel, x.T @ weights, atol=1e-5)
