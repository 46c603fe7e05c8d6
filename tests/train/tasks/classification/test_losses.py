import dataclasses
import importlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from train.recipes import digits
from train.task import DatasetInfo
from train.tasks.classification.losses import (
    Loss,
    binary_cross_entropy,
    cross_entropy,
    smooth_multi_hot,
    smooth_targets,
)

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 10, 16)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_smoothed_loss_equals_torch(smoothing: float, scale: float) -> None:
    logits = scale * RNG.standard_normal((16, 10)).astype(np.float32)
    actual = cross_entropy(jnp.asarray(logits), smooth_targets(jnp.asarray(LABELS), 10, smoothing))
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits, dtype=torch.float64), torch.tensor(LABELS), label_smoothing=smoothing, reduction="none"
    )
    # A few float32 roundings of the largest logit, which the others are subtracted from.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=8 * 2**-24 * np.abs(logits).max())


def test_soft_target_loss_equals_torch() -> None:
    logits = RNG.standard_normal((16, 10)).astype(np.float32)
    targets = RNG.dirichlet(np.ones(10), 16).astype(np.float32)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits, dtype=torch.float64), torch.tensor(targets, dtype=torch.float64), reduction="none"
    )
    actual = cross_entropy(jnp.asarray(logits), jnp.asarray(targets))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=8 * 2**-24 * np.abs(logits).max())


def test_targets_are_distributions() -> None:
    targets = np.asarray(smooth_targets(jnp.asarray(LABELS), 10, 0.1))
    assert targets.dtype == np.float32
    expected = np.full((16, 10), 0.01)
    expected[np.arange(16), LABELS] = 0.91
    np.testing.assert_allclose(targets, expected, rtol=2e-7)  # one rounding or two


def test_computed_in_float32_whatever_the_model_computes_in() -> None:
    logits = jnp.asarray(RNG.standard_normal((16, 10)), jnp.bfloat16)
    targets = smooth_targets(jnp.asarray(LABELS), 10, 0.1)
    actual = cross_entropy(logits, targets)
    assert actual.dtype == jnp.float32
    np.testing.assert_array_equal(actual, cross_entropy(logits.astype(jnp.float32), targets))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_binary_loss_of_several_labels_equals_torch(smoothing: float, scale: float) -> None:
    logits = scale * RNG.standard_normal((16, 10)).astype(np.float32)
    labels = RNG.random((16, 10)) < 0.3
    actual = binary_cross_entropy(jnp.asarray(logits), smooth_multi_hot(jnp.asarray(labels), smoothing))
    targets = np.where(labels, 1 - smoothing / 2, smoothing / 2)
    expected = torch.nn.BCEWithLogitsLoss(reduction="none")(
        torch.tensor(logits, dtype=torch.float64), torch.tensor(targets, dtype=torch.float64)
    ).mean(1)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=8 * 2**-24 * np.abs(logits).max())


@pytest.mark.usefixtures("timm")
def test_binary_loss_of_one_label_is_timms() -> None:
    timm_loss = importlib.import_module("timm.loss").BinaryCrossEntropy(smoothing=0.1, reduction="mean")
    logits = RNG.standard_normal((16, 10)).astype(np.float32)
    actual = binary_cross_entropy(jnp.asarray(logits), smooth_targets(jnp.asarray(LABELS), 10, 0.1)).mean()
    expected = timm_loss(torch.tensor(logits, dtype=torch.float64), torch.tensor(LABELS)).item()
    assert float(actual) == pytest.approx(expected, abs=4 * 2**-24)


@pytest.mark.parametrize(
    ("loss", "expected"), [("auto", cross_entropy), ("cross_entropy", cross_entropy), ("bce", binary_cross_entropy)]
)
def test_loss_of_the_task(loss: Any, expected: Loss) -> None:
    info = DatasetInfo(10, ("",) * 10, 100, 10)
    task = dataclasses.replace(digits(), loss=loss).make_task(info)
    logits = jnp.asarray(RNG.standard_normal((16, 10)), jnp.float32)
    targets = smooth_targets(jnp.asarray(LABELS), 10, 0.1)
    actual, _ = task.loss(lambda images, **_: images, {"image": logits, "target": targets}, nnx.Rngs(0))
    assert float(actual) == pytest.approx(float(expected(logits, targets).mean()))
