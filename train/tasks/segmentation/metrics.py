"""Mean IoU, mean accuracy and accuracy over a whole split, exact for images of any sizes."""

import collections
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...evaluate import MAX_IN_FLIGHT
from ...task import Batch
from .config import SegmentationDataConfig
from .prediction import predict


def count(labels: jax.Array, predictions: jax.Array, num_classes: int) -> jax.Array:
    """Counts pixels by label and prediction; those whose label is no class, such as ignored ones, are left out.

    Args:
        labels: integers [B, ...].
        predictions: integers below `num_classes`, of the same shape.
        num_classes: K.

    Returns:
        int32 [K, K]: label by prediction.
    """
    pairs = labels.astype(jnp.int32) * num_classes + predictions.astype(jnp.int32)
    pairs = jnp.where(labels < num_classes, pairs, num_classes**2).reshape(len(labels), -1)
    # Image by image, then added up: each device counts its own.
    counts = jax.vmap(lambda row: jnp.zeros(num_classes**2 + 1, jnp.int32).at[row].add(1))(pairs)
    return counts.sum(axis=0)[:-1].reshape(num_classes, num_classes)


def ious(confusion: np.ndarray) -> np.ndarray:
    """Computes each class's intersection over union, float64 [K]; NaN of one neither labelled nor predicted.

    Args:
        confusion: integers [K, K], label by prediction.
    """
    both = np.diag(confusion)
    return _ratio(both, confusion.sum(axis=0) + confusion.sum(axis=1) - both)


def figures(confusion: np.ndarray) -> dict[str, float]:
    """Computes "miou", "macc" and "aacc", fractions: mmseg's, whose means leave classes out that have no value.

    Args:
        confusion: integers [K, K], label by prediction. All figures are 0 if it is 0.
    """
    recalls = _ratio(np.diag(confusion), confusion.sum(axis=1))
    all_right = _ratio(np.trace(confusion)[None], confusion.sum()[None])
    values = {"miou": ious(confusion), "macc": recalls, "aacc": all_right}
    return {name: float(np.nanmean(each)) if confusion.any() else 0.0 for name, each in values.items()}


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


class SegmentationEvaluator:
    """Counts the pixels of a pass by label and prediction; implements `Evaluator`.

    Args:
        data: the settings of evaluation.
        num_classes: of the data set.
    """

    def __init__(self, data: SegmentationDataConfig, num_classes: int) -> None:
        self._data = data
        self._num_classes = num_classes
        self._confusion = np.zeros((num_classes, num_classes), np.int64)
        self._examples = 0
        self._waiting: collections.deque[dict[str, jax.Array]] = collections.deque()

    def step(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
        """Computes "confusion", int32 [K, K], and "examples", int32 [], of a batch that `predict` takes."""
        predictions = predict(model, batch, self._data)
        return {
            "confusion": count(batch["label"], predictions, self._num_classes),
            "examples": batch["mask"].sum(dtype=jnp.int32),
        }

    def update(self, outputs: dict[str, jax.Array], batch: Batch) -> None:
        del batch
        self._waiting.append(outputs)
        if len(self._waiting) > MAX_IN_FLIGHT:  # older ones are computed, and leave the device's memory
            self._add(self._waiting.popleft())

    def _add(self, outputs: dict[str, jax.Array]) -> None:
        self._confusion += np.asarray(outputs["confusion"])
        self._examples += int(outputs["examples"])

    def result(self) -> dict[str, float | int]:
        """Returns "miou", "macc" and "aacc" (fractions) and "examples"."""
        while self._waiting:
            self._add(self._waiting.popleft())
        return {**figures(self._confusion), "examples": self._examples}
