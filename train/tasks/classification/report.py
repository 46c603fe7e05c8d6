"""A page that shows where a classifier errs: confusion matrix, classes by recall, misclassified images."""

import heapq
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from twins_jax import page
from twins_jax.files import write_text
from twins_jax.preprocess import normalize

from ...confusion import write_confusion
from ...task import Batch

MAX_IMAGES = 100
"""Misclassified images on the page, those with the surest wrong answers."""

MAX_MATRIX_CLASSES = 30
"""With more classes than this the page lists the most frequent confusions instead of the whole matrix."""

THUMBNAIL = 112
"""Largest side of the images in the page, in pixels."""

_STYLE = f"""
figure {{ display: inline-block; width: {THUMBNAIL}px; margin: .5em; vertical-align: top; font-size: 12px; }}
figure img {{ width: {THUMBNAIL}px; }}
"""


class Mistake(NamedTuple):
    """A misclassified image. Ordered by confidence, then by position in the data set."""

    confidence: float
    position: int
    label: int
    prediction: int
    image: np.ndarray


class ReportEvaluator:
    """Classifies a pass over a split and writes FOLDER/confusion.csv and FOLDER/index.html; implements `Evaluator`.

    Args:
        folder: made if missing; an older report in it is replaced.
        class_names: of the labels. Bytes of folder names that are no UTF-8 appear as replacement characters.
    """

    def __init__(self, folder: Path, class_names: Sequence[str]) -> None:
        self._folder = folder
        self._class_names = [page.printable(name) for name in class_names]
        self._confusion = np.zeros((len(class_names), len(class_names)), np.int64)
        self._worst: list[Mistake] = []
        self._position = 0

    def step(self, model: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Computes the predicted classes, int32 [B], and their probabilities, float32 [B]."""
        probabilities = jax.nn.softmax(model(normalize(batch["image"])))
        return probabilities.argmax(axis=-1), probabilities.max(axis=-1)

    def update(self, outputs: tuple[jax.Array, jax.Array], batch: Batch) -> None:
        """Counts a batch {"image": uint8 [B, H, W, 3], "label": int32 [B], "mask": bool [B]} of this process."""
        predictions, confidences = (np.asarray(part) for part in outputs)
        images, labels, mask = (np.asarray(batch[key]) for key in ("image", "label", "mask"))
        np.add.at(self._confusion, (labels[mask], predictions[mask]), 1)
        for row in np.flatnonzero(mask & (predictions != labels)):
            place = self._position + int(row)
            mistake = Mistake(float(confidences[row]), place, int(labels[row]), int(predictions[row]), images[row])
            heapq.heappush(self._worst, mistake)
            if len(self._worst) > MAX_IMAGES:
                heapq.heappop(self._worst)
        self._position += len(labels)

    def result(self) -> dict[str, float | int]:
        """Writes the files; returns "examples"."""
        names = self._class_names
        self._folder.mkdir(parents=True, exist_ok=True)
        write_confusion(self._folder / "confusion.csv", names, self._confusion)
        write_text(self._folder / "index.html", _page(self._confusion, sorted(self._worst, reverse=True), names))
        return {"examples": int(self._confusion.sum())}


def _page(confusion: np.ndarray, mistakes: Sequence[Mistake], class_names: Sequence[str]) -> str:
    names = [page.text(name) for name in class_names]
    examples, right = int(confusion.sum()), int(np.trace(confusion))
    matrix = _matrix(confusion, names) if len(names) <= MAX_MATRIX_CLASSES else _confusions(confusion, names)
    figures = "".join(
        f"<figure>{page.thumbnail(mistake.image, THUMBNAIL)}<figcaption>{names[mistake.label]}"
        f"<br>taken for {names[mistake.prediction]}, {mistake.confidence:.0%}</figcaption></figure>"
        for mistake in mistakes
    )
    body = f"""\
<h2>Confusion</h2>{matrix}
<h2>Classes by recall</h2>{_recalls(confusion, names)}
<h2>Misclassified images, the surest first ({len(mistakes)} of {examples - right})</h2>{figures}"""
    return page.document(f"Evaluation: {right} of {examples} right ({right / examples:.2%})", _STYLE, body)


def _matrix(confusion: np.ndarray, names: Sequence[str]) -> str:
    head = "<tr><th>true \\ predicted" + "".join(f"<th>{name}" for name in names)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    rows = []
    for name, counts, row_shares in zip(names, confusion, shares, strict=True):
        cells = (
            f'<td style="background: rgb(30 110 200 / {share:.3f})">{count or ""}'
            for count, share in zip(counts, row_shares, strict=True)
        )
        rows.append(f"<tr><th>{name}{''.join(cells)}")
    return f"<table>{head}{''.join(rows)}</table>"


def _confusions(confusion: np.ndarray, names: Sequence[str]) -> str:
    wrong = confusion - np.diag(np.diag(confusion))
    order = np.argsort(wrong, axis=None)[::-1][:50]
    pairs = (np.unravel_index(index, wrong.shape) for index in order)
    rows = (f"<tr><td>{names[t]}<td>taken for {names[p]}<td>{wrong[t, p]}" for t, p in pairs if wrong[t, p])
    return f"<table>{''.join(rows)}</table>"


def _recalls(confusion: np.ndarray, names: Sequence[str]) -> str:
    totals = confusion.sum(axis=1)
    recalls = np.diag(confusion) / np.maximum(totals, 1)
    order = [label for label in np.argsort(recalls, kind="stable") if totals[label]]
    rows = (f"<tr><td>{names[i]}<td>{recalls[i]:.1%}<td>of {totals[i]}" for i in order)
    return f"<table>{''.join(rows)}</table>"
