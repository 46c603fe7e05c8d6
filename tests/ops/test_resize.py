"""Resizing and pooling against PyTorch in float64."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.models import relative_error
from twins_jax import ops

torch = pytest.importorskip("torch")
F = pytest.importorskip("torch.nn.functional")

SIZES = [
    ((1, 1), (4, 6)),
    ((1, 9), (5, 1)),
    ((5, 7), (11, 13)),
    ((7, 4), (14, 8)),
    ((6, 6), (6, 6)),
    ((13, 17), (13, 5)),
    ((31, 20), (7, 33)),
    ((40, 23), (3, 2)),
    ((42, 85), (85, 170)),
]
"""Of a map and of the result: the same, larger and smaller ones, sides of one position."""


def draw(*shape: int) -> np.ndarray:
    return 3.0 + np.random.default_rng(0).standard_normal(shape)


def compiled(resize: Callable[..., jax.Array], x: np.ndarray, *sizes: Any) -> jax.Array:
    """The result of one program: compiling one for each operation takes the time."""
    result: jax.Array = jax.jit(resize, static_argnums=1)(x, *sizes)
    return result


def nchw(x: np.ndarray) -> "torch.Tensor":
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def nhwc(x: "torch.Tensor") -> np.ndarray:
    array: np.ndarray = x.detach().permute(0, 2, 3, 1).numpy()
    return array


def bilinear(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return nhwc(F.interpolate(nchw(x), size=size, mode="bilinear", align_corners=False))


@pytest.mark.parametrize(("source", "target"), SIZES, ids=str)
def test_bilinear(source: tuple[int, int], target: tuple[int, int]) -> None:
    x = draw(2, *source, 3)
    with jax.enable_x64(True):
        resized = compiled(ops.resize_bilinear, x, target)
    assert resized.dtype == np.float64
    assert resized.shape == (2, *target, 3)
    assert relative_error(resized, bilinear(x, target)) < 1e-14


def test_gradients_of_bilinear() -> None:
    x, weights = draw(2, 7, 12, 3), draw(2, 15, 5, 3)
    reference = nchw(x).requires_grad_()
    (F.interpolate(reference, size=(15, 5), mode="bilinear") * nchw(weights)).sum().backward()
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(lambda x: (ops.resize_bilinear(x, (15, 5)) * weights).sum()))(x)
    assert relative_error(gradient, nhwc(reference.grad)) < 1e-14


def test_bilinear_of_a_part_equals_that_of_the_cropped_map() -> None:
    """The rest of the result repeats the last row and column of the part; nothing beyond the part is read."""
    x, size = draw(2, 31, 40, 3), (35, 50)
    resize = jax.jit(lambda x, source, target: ops.resize_bilinear(x, size, source=source, target=target))
    for source, target in SIZES[:-3]:
        (height, width), part = source, x.copy()
        part[:, height:], part[:, :, width:] = np.nan, np.nan
        with jax.enable_x64(True):
            lengths = [tuple(np.asarray(length, np.int32) for length in sides) for sides in (source, target)]
            resized = np.asarray(resize(part, *lengths))
        wanted = x[:, :height, :width]
        for axis, (part_length, whole_length) in enumerate(zip(target, size, strict=True), start=1):
            shape = [*wanted.shape[1:3]]
            shape[axis - 1] = part_length
            last = np.take(wanted, [-1], axis=axis)
            rest = np.repeat(last, whole_length - part_length, axis=axis)
            wanted = np.concatenate([bilinear(wanted, (shape[0], shape[1])), rest], axis=axis)
        assert relative_error(resized, wanted) < 1e-13, (source, target)


@pytest.mark.parametrize("source", [(20, 33), (6, 11)], ids=str)
def test_bilinear_of_bfloat16_rounds_once(source: tuple[int, int]) -> None:
    x = jnp.asarray(draw(1, *source, 3), "bfloat16")
    resized = ops.resize_bilinear(x, (9, 14))
    assert resized.dtype == jnp.bfloat16
    truth = bilinear(np.asarray(x, np.float64), (9, 14))
    assert np.all(np.abs(np.asarray(resized, np.float64) - truth) <= np.abs(truth) * 2.0**-8 * 1.001)


@pytest.mark.parametrize(("source", "target"), SIZES, ids=str)
def test_nearest(source: tuple[int, int], target: tuple[int, int]) -> None:
    x = draw(2, *source, 3)
    with jax.enable_x64(True):
        resized = compiled(ops.resize_nearest, x, target)
    np.testing.assert_array_equal(resized, nhwc(F.interpolate(nchw(x), size=target, mode="nearest")))


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (16, 7), (13, 12)], ids=str)
def test_adaptive_average_pool(size: tuple[int, int], bins: int) -> None:
    x = draw(2, *size, 3)
    with jax.enable_x64(True):
        pooled = compiled(ops.adaptive_average_pool, x, bins)
    assert relative_error(pooled, nhwc(F.adaptive_avg_pool2d(nchw(x), bins))) < 1e-14


def test_adaptive_average_pool_of_bfloat16_sums_in_float32() -> None:
    x = jnp.asarray(draw(1, 40, 50, 3), "bfloat16")
    pooled = ops.adaptive_average_pool(x, 1)
    assert pooled.dtype == jnp.bfloat16
    truth = np.asarray(x, np.float64).mean(axis=(1, 2), keepdims=True)
    assert np.all(np.abs(np.asarray(pooled, np.float64) - truth) <= np.abs(truth) * 2.0**-8 * 1.001)
