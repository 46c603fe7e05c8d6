"""A page that shows where a segmenter errs: IoU by class, and the images that it segments worst."""

import heapq
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from twins_jax import page
from twins_jax.files import write_text
from twins_jax.segmentation.palette import IGNORED, PALETTE, colorize, overlay
from twins_jax.segmentation.preprocess import resize_nearest

from ...confusion import write_confusion
from ...data.planned import PlannedBatch
from ...task import Batch
from .config import SegmentationDataConfig
from .metrics import figures, ious
from .prediction import image_name, predict, size_name

MAX_IMAGES = 24
"""Images on the page, those of the lowest IoU."""

PICTURE = 320
"""Largest side of the pictures in the page, in pixels."""

_STYLE = f"""
.color {{ display: inline-block; width: 1em; height: 1em; vertical-align: -.15em; border-radius: .2em; }}
td:first-child, th:first-child {{ text-align: left; }}
.legend > span {{ white-space: nowrap; margin-right: 1.2em; }}
figure {{ margin: 1.2em 0; }}
figure div {{ display: grid; grid-template-columns: repeat(4, minmax(0, {PICTURE}px)); gap: .4em; }}
figure img {{ width: 100%; }}
"""


class Worst(NamedTuple):
    """An image and its masks. Ordered by the negative of its IoU, then by position in the data set."""

    negative_iou: float
    position: int
    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray


class ReportEvaluator:
    """Segments a pass over a split and writes FOLDER/confusion.csv and FOLDER/index.html; implements `Evaluator`.

    Args:
        folder: made if missing; an older report in it is replaced.
        class_names: of the labels.
        data: the settings of evaluation.
        plan: of the batches, in their order.
        name: returns that of an image's file, by position in the data set.
    """

    def __init__(
        self,
        folder: Path,
        class_names: Sequence[str],
        data: SegmentationDataConfig,
        plan: Sequence[PlannedBatch],
        name: Callable[[int], str],
    ) -> None:
        self._folder = folder
        self._class_names = [page.printable(name) for name in class_names]
        self._data = data
        self._plan = iter(plan)
        self._name = name
        self._confusion = np.zeros((len(class_names), len(class_names)), np.int64)
        self._examples = 0
        self._worst: list[Worst] = []

    def step(self, model: Any, batch: Batch) -> jax.Array:
        """Computes the predicted classes, uint8 [B, H, W]."""
        return predict(model, batch, self._data)

    def update(self, outputs: jax.Array, batch: Batch) -> None:
        """Counts a batch of this process, and keeps its worst images."""
        predictions = np.asarray(outputs)
        arrays = {
            name: np.asarray(batch[name]) for name in ("label", "label_size", "mask", image_name(0), size_name(0))
        }
        for row, position in enumerate(next(self._plan).examples):
            if not arrays["mask"][row]:
                continue
            height, width = arrays["label_size"][row]
            label, prediction = arrays["label"][row, :height, :width], predictions[row, :height, :width]
            confusion = _count(label, prediction, len(self._confusion))
            self._confusion += confusion
            self._examples += 1
            if not confusion.any():
                continue  # without a label no prediction is wrong
            height, width = arrays[size_name(0)][row]
            image = arrays[image_name(0)][row, :height, :width]
            masks = (_shrink(mask).copy() for mask in (label, prediction))  # not views, which would keep the batch
            worst = Worst(-figures(confusion)["miou"], position, _shrink(image).copy(), *masks)
            heapq.heappush(self._worst, worst)
            if len(self._worst) > MAX_IMAGES:
                heapq.heappop(self._worst)

    def result(self) -> dict[str, float | int]:
        """Writes the files; returns "examples"."""
        names = self._class_names
        self._folder.mkdir(parents=True, exist_ok=True)
        write_confusion(self._folder / "confusion.csv", names, self._confusion)
        write_text(self._folder / "index.html", self._page())
        return {"examples": self._examples}

    def _page(self) -> str:
        names = [page.text(name) for name in self._class_names]
        worst = sorted(self._worst, reverse=True)
        values = figures(self._confusion)
        title = f"Evaluation: mIoU {values['miou']:.2%} of {self._examples} images"
        body = f"""\
<p>mean accuracy {values["macc"]:.2%}, pixel accuracy {values["aacc"]:.2%}, both of pixels that are not ignored</p>
<h2>Classes by IoU</h2>{_classes(self._confusion, names)}
<h2>Images of the lowest IoU ({len(worst)} of {self._examples})</h2>
<p class="legend">{_legend(names, worst)}</p>
<p>From left to right: image, mask, prediction, and the prediction over the image.</p>
{"".join(_figure(each, page.text(self._name(each.position))) for each in worst)}"""
        return page.document(title, _STYLE, body)


def _count(label: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    valid = label < classes
    pairs = label[valid].astype(np.int64) * classes + prediction[valid]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def _shrink(pixels: np.ndarray) -> np.ndarray:
    """Returns an image or a mask of at most `PICTURE` pixels a side, the nearest of its own."""
    factor = min(1.0, PICTURE / max(pixels.shape[:2]))
    height, width = (max(1, round(side * factor)) for side in pixels.shape[:2])
    return resize_nearest(pixels, (height, width))


def _classes(confusion: np.ndarray, names: Sequence[str]) -> str:
    labelled, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    total, values = max(int(labelled.sum()), 1), ious(confusion)
    head = "<tr><th>class<th>IoU<th>accuracy<th>share of the labelled pixels<th>share predicted"
    rows = []
    for label in np.argsort(values, kind="stable"):  # NaN, of classes that are nowhere, comes last
        if np.isnan(values[label]):
            break
        recall = f"{confusion[label, label] / labelled[label]:.1%}" if labelled[label] else "none"
        shares = f"<td>{labelled[label] / total:.2%}<td>{predicted[label] / total:.2%}"
        rows.append(f"<tr><td>{_color(label)} {names[label]}<td>{values[label]:.1%}<td>{recall}{shares}")
    return f"<table>{head}{''.join(rows)}</table>"


def _legend(names: Sequence[str], worst: Sequence[Worst]) -> str:
    shown = np.zeros(256, bool)
    for each in worst:
        shown[each.label] = shown[each.prediction] = True
    texts = [f"<span>{_color(label)} {name}</span>" for label, name in enumerate(names) if shown[label]]
    return " ".join([*texts, *([f"<span>{_color(IGNORED)} ignored</span>"] if shown[IGNORED] else [])])


def _color(label: int) -> str:
    red, green, blue = PALETTE[label]
    return f'<span class="color" style="background: rgb({red} {green} {blue})"></span>'


def _figure(worst: Worst, name: str) -> str:
    height, width = worst.image.shape[:2]
    prediction = resize_nearest(worst.prediction, (height, width))
    pictures = (worst.image, colorize(worst.label), colorize(worst.prediction), overlay(worst.image, prediction))
    images = "".join(page.thumbnail(pixels, PICTURE) for pixels in pictures)
    return f"<figure><div>{images}</div><figcaption>{name}: IoU {-worst.negative_iou:.1%}</figcaption></figure>"
