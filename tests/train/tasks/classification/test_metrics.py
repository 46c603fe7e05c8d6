from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from train.evaluate import evaluate, make_eval_step
from train.task import Evaluator
from train.tasks.classification.metrics import ClassificationEvaluator, MultiLabelEvaluator
from twins_jax.preprocess import IMAGENET_MEAN, IMAGENET_STD
from twins_jax.sharding import make_mesh

NAN_ROW = 255
"""The image of padded rows: its logits are NaN, and a padded row that counts shows."""


class LookUp(nnx.Module):
    """A model that knows its logits: the first pixel's red is their row in a table."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = nnx.Param(jnp.asarray(table))

    def __call__(self, images: jax.Array) -> jax.Array:
        red = (images[:, 0, 0, 0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]) * 255
        return self.table[...][jnp.round(red).astype(jnp.int32)]


def batches(labels: np.ndarray, size: int) -> Iterator[dict[str, jax.Array]]:
    for start in range(0, len(labels), size):
        part = labels[start : start + size]
        images = np.full((size, 2, 2, 3), NAN_ROW, np.uint8)
        images[: len(part)] = np.arange(start, start + len(part), dtype=np.uint8)[:, None, None, None]
        padded = np.pad(part, [(0, size - len(part))] + [(0, 0)] * (part.ndim - 1))
        yield {"image": images, "label": padded, "mask": np.arange(size) < len(part)}


def evaluated(
    logits: np.ndarray, labels: np.ndarray, size: int, kind: Callable[[], Evaluator] = ClassificationEvaluator
) -> dict[str, float | int]:
    table = np.full((256, logits.shape[1]), np.nan, np.float32)
    table[: len(logits)] = logits
    evaluator, graphdef = kind(), nnx.graphdef(LookUp(table))
    step = make_eval_step(evaluator, graphdef, make_mesh())
    return evaluate(evaluator, step, {"table": table}, {}, batches(labels, size))


@pytest.mark.parametrize("size", [1, 8, 23, 32])
@pytest.mark.parametrize("classes", [3, 10])
def test_equals_numpy_however_the_examples_are_batched(size: int, classes: int) -> None:
    rng = np.random.default_rng(classes)
    logits = rng.standard_normal((23, classes)).astype(np.float32)
    labels = rng.integers(0, classes, 23).astype(np.int32)
    result = evaluated(logits, labels, size)

    ranked = np.argsort(-logits, axis=1, kind="stable")
    shifted = np.exp(logits.astype(np.float64))
    losses = -np.log(shifted[np.arange(23), labels] / shifted.sum(axis=1))
    assert result["top1"] == (ranked[:, 0] == labels).sum() / 23
    assert result["top5"] == (ranked[:, :5] == labels[:, None]).any(axis=1).sum() / 23
    assert result["examples"] == 23
    # A few float32 roundings of the largest logit; the mean over the examples is float64.
    assert result["loss"] == pytest.approx(losses.mean(), abs=4 * 2**-24 * float(np.abs(logits).max()))


def test_of_equal_logits_the_first_class_is_predicted() -> None:
    # A model that says nothing therefore scores as one that always says 0, 1, 2, 3, 4.
    result = evaluated(np.zeros((20, 10), np.float32), np.arange(20, dtype=np.int32) % 10, 8)
    assert (result["top1"], result["top5"]) == (0.1, 0.5)
    # Two that share the lead: the first one is found at once, the second one is not.
    logits = np.zeros((2, 10), np.float32)
    logits[:, [3, 7]] = 1.0
    assert evaluated(logits, np.array([3, 7], np.int32), 2)["top1"] == 0.5


def test_nan_is_never_right() -> None:
    logits = np.full((4, 10), np.nan, np.float32)
    result = evaluated(logits, np.zeros(4, np.int32), 4)
    assert (result["top1"], result["top5"], result["examples"]) == (0.0, 0.0, 4)
    assert np.isnan(result["loss"])


def test_sums_are_exact() -> None:
    # In float32 a sum of 2**24 takes up no 1 any more.
    sums = {"top1": np.int32(1), "top5": np.int32(1), "loss": np.float32(2**24), "examples": np.int32(2)}
    one = {"top1": np.int32(0), "top5": np.int32(0), "loss": np.float32(1), "examples": np.int32(2)}
    evaluator: Any = ClassificationEvaluator()
    for part in (sums, one, one, one):
        evaluator.update(part, {})
    assert evaluator.result() == {"top1": 1 / 8, "top5": 1 / 8, "loss": (2**24 + 3) / 8, "examples": 8}


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """The sum, over thresholds from the highest score down, of precision x gain in recall."""
    total = recall = 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        found = labels[scores >= threshold]
        total += found.mean() * (found.sum() / labels.sum() - recall)
        recall = found.sum() / labels.sum()
    return total


@pytest.mark.parametrize("size", [4, 23, 32])
@pytest.mark.parametrize("ties", [False, True])
def test_several_labels_equal_numpy_however_the_examples_are_batched(size: int, ties: bool) -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((23, 6)).astype(np.float32)
    logits = logits.round() if ties else logits
    labels = rng.random((23, 6)) < 0.3
    labels[0] = False
    result = evaluated(logits, labels, size, MultiLabelEvaluator)

    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    losses = -np.where(labels, np.log(probabilities), np.log1p(-probabilities)).mean(axis=1)
    expected = np.mean([average_precision(labels[:, index], logits[:, index]) for index in range(6)])
    assert result["map"] == pytest.approx(expected, abs=1e-15)
    answers = probabilities > 0.5
    assert result["f1"] == pytest.approx(2 * (answers & labels).sum() / (answers.sum() + labels.sum()), abs=1e-15)
    assert result["loss"] == pytest.approx(losses.mean(), abs=4 * 2**-24 * float(np.abs(logits).max()))
    assert result["examples"] == 23
    assert next(iter(result)) == "map"  # `train.plot` draws the first


def test_classes_that_no_example_has_do_not_count() -> None:
    labels = np.zeros((8, 3), bool)
    labels[:4, 1] = True
    logits = np.zeros((8, 3), np.float32)
    logits[:4, 1] = 1.0
    assert evaluated(logits, labels, 8, MultiLabelEvaluator)["map"] == 1.0
    result = evaluated(logits - 5, np.zeros((8, 3), bool), 8, MultiLabelEvaluator)
    assert (result["map"], result["f1"], result["examples"]) == (0.0, 0.0, 8)
    assert MultiLabelEvaluator().result() == {"map": 0.0, "f1": 0.0, "loss": 0.0, "examples": 0}


def test_nan_ranks_last() -> None:
    labels = np.array([[True], [False], [True], [False]])
    result = evaluated(np.float32([[np.nan], [np.nan], [1.0], [0.5]]), labels, 4, MultiLabelEvaluator)
    assert result["map"] == average_precision(labels[:, 0], np.array([-1.0, -1.0, 1.0, 0.5]))
    assert np.isnan(evaluated(np.full((4, 2), np.nan), np.ones((4, 2), bool), 4, MultiLabelEvaluator)["loss"])
