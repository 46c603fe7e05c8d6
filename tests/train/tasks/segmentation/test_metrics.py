"""Counts of pixels against naive ones, and the figures made of them against closed forms."""

from typing import Any

import jax
import numpy as np
import pytest

from train.evaluate import MAX_IN_FLIGHT
from train.tasks.segmentation.config import SegmentationDataConfig
from train.tasks.segmentation.metrics import SegmentationEvaluator, count, figures, ious

CLASSES, CASES = 7, 20


def naive(labels: np.ndarray, predictions: np.ndarray, classes: int) -> dict[str, float]:
    """mmseg's figures pixel by pixel, in Python."""
    pairs = [(t, p) for t, p in zip(labels.ravel().tolist(), predictions.ravel().tolist(), strict=True) if t != 255]
    of_iou, of_recall = [], []
    for label in range(classes):
        both = sum(t == p == label for t, p in pairs)
        union = sum(label in (t, p) for t, p in pairs)
        labelled = sum(t == label for t, _ in pairs)
        of_iou += [both / union] if union else []
        of_recall += [both / labelled] if labelled else []
    return {
        "miou": sum(of_iou) / len(of_iou),
        "macc": sum(of_recall) / len(of_recall),
        "aacc": sum(t == p for t, p in pairs) / len(pairs),
    }


def cases() -> list[tuple[np.ndarray, np.ndarray]]:
    """Random labels, of which some are ignored, and predictions; in each some classes are in one, or in neither."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(CASES):
        present, answered = (rng.choice(CLASSES, rng.integers(1, CLASSES), replace=False) for _ in range(2))
        labels = rng.choice(present, (2, 9, 13)).astype(np.uint8)
        labels[rng.random(labels.shape) < rng.random() * 0.9] = 255
        labels[0, 0, 0] = present[0]
        found.append((labels, rng.choice(answered, labels.shape).astype(np.uint8)))
    return found


def test_figures_are_those_of_a_naive_count() -> None:
    counted = jax.jit(lambda labels, predictions: count(labels, predictions, CLASSES))
    absent = 0
    for labels, predictions in cases():
        confusion = np.asarray(counted(labels, predictions))
        assert confusion.dtype == np.int32
        assert confusion.sum() == (labels != 255).sum()
        assert figures(confusion) == pytest.approx(naive(labels, predictions, CLASSES), rel=1e-14)
        absent += int(np.isnan(ious(confusion)).sum())
    assert absent > CASES  # classes that are nowhere were left out


def test_all_255_classes() -> None:
    labels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    confusion = np.asarray(count(labels, np.minimum(labels, 254), 255))
    np.testing.assert_array_equal(confusion, np.eye(255))


def test_nothing_labelled() -> None:
    assert figures(np.zeros((3, 3), np.int64)) == {"miou": 0.0, "macc": 0.0, "aacc": 0.0}


def test_counts_of_a_pass_are_not_bounded_by_int32() -> None:
    evaluator = SegmentationEvaluator(SegmentationDataConfig(dir="data"), 2)
    part: Any = {"confusion": np.array([[2**31 - 1, 0], [2**31 - 1, 0]], np.int32), "examples": np.int32(3)}
    for _ in range(MAX_IN_FLIGHT + 3):
        evaluator.update(part, {})
    result = evaluator.result()
    assert result == {"miou": 0.25, "macc": 0.5, "aacc": 0.5, "examples": 3 * (MAX_IN_FLIGHT + 3)}
