"""Sampling: exact numbers, and every box as often as the others."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twins_jax.detection.assign import BACKGROUND, IGNORED
from twins_jax.detection.sampling import Samples, sample


@partial(jax.jit, static_argnames=("number", "max_positive"))
def drawn(key: jax.Array, assigned: jax.Array, number: int, max_positive: int) -> Samples:
    return sample(key, assigned, number=number, max_positive=max_positive)


@pytest.mark.parametrize(
    ("positives", "negatives", "ignored", "expected"),
    [
        (9, 30, 3, (4, 6)),
        (2, 30, 10, (2, 8)),
        (4, 38, 0, (4, 6)),
        (0, 42, 0, (0, 10)),
        (9, 3, 30, (4, 3)),
        (42, 0, 0, (4, 0)),
        (0, 0, 42, (0, 0)),
        (1, 9, 32, (1, 9)),
    ],
)
def test_numbers(positives: int, negatives: int, ignored: int, expected: tuple[int, int]) -> None:
    kinds = [*range(100, 100 + positives), *([BACKGROUND] * negatives), *([IGNORED] * ignored)]
    assigned = np.random.default_rng(0).permutation(np.array(kinds, np.int32))
    samples = drawn(jax.random.key(1), assigned, 10, 4)
    indices, objects, valid = (np.asarray(x) for x in samples)
    assert (indices.dtype, objects.dtype, valid.dtype) == (np.int32, np.int32, bool)
    assert ((objects >= 0).sum(), (objects == BACKGROUND).sum()) == expected
    np.testing.assert_array_equal(valid, np.arange(10) < sum(expected))
    np.testing.assert_array_equal(valid, objects != IGNORED)
    np.testing.assert_array_equal(objects[valid], assigned[indices[valid]])
    assert len(set(indices[valid].tolist())) == valid.sum()
    assert (objects[: expected[0]] >= 0).all()  # positives first


def test_fewer_boxes_than_asked_for() -> None:
    samples = drawn(jax.random.key(0), jnp.array([BACKGROUND, 3, IGNORED]), 8, 4)
    assert samples.indices[:2].tolist() == [1, 0]
    assert samples.assigned.tolist() == [3, BACKGROUND, *([IGNORED] * 6)]


def test_the_key_decides() -> None:
    assigned = np.where(np.arange(200) < 50, 7, BACKGROUND).astype(np.int32)
    first, again, other = (drawn(jax.random.key(seed), assigned, 32, 16).indices for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert set(first.tolist()) != set(other.tolist())


def test_uniform_without_replacement() -> None:
    """Of 6 positives each pair is drawn with probability 1/15, of 7 negatives each three with 1/35."""
    assigned = jnp.array([0, -1, -1, 1, 2, -2, -1, -1, 3, -1, 4, -2, 5, -1, -1])
    keys = jax.random.split(jax.random.key(0), 20_000)
    indices = np.asarray(jax.vmap(lambda key: drawn(key, assigned, 5, 2).indices)(keys))
    for subsets, number in ((indices[:, :2], 15), (indices[:, 2:], 35)):
        _, counts = np.unique(np.sort(subsets), axis=0, return_counts=True)
        assert len(counts) == number
        expected = len(keys) / number
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
