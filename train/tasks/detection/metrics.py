"""COCO's average precision over a whole split, by pycocotools, and its files of results."""

import collections
import contextlib
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from twins_jax.errors import InputError
from twins_jax.files import write_text

from ...distributed import is_main_process
from ...evaluate import MAX_IN_FLIGHT
from ...task import Batch
from .prediction import Found, Outputs, by_image, detect

Kind = Literal["bbox", "segm"]

PREFIXES: Mapping[Kind, str] = {"bbox": "box", "segm": "mask"}
"""The first word of a figure's name."""

FIGURES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)
"""COCO's twelve: precision averaged over IoUs from 0.5 to 0.95, at 0.5, at 0.75, of objects below 32^2 pixels, up to
96^2 and above; recall with 1, 10 and 100 detections an image, and of the same sizes."""


Truth = Mapping[str, Sequence[Mapping[str, Any]]]
"""The annotations of a split, complete as a data set of pycocotools' `COCO`: "images", "categories", in the order of
the labels, and "annotations", numbered from 1 (pycocotools takes a match with the annotation 0 for none)."""


class Results:
    """The objects found in a split, in COCO's format.

    Args:
        truth: of the split.
        kinds: "bbox", and "segm" of a detector with masks.
    """

    def __init__(self, truth: Truth, kinds: Sequence[Kind]) -> None:
        self._truth = truth
        self._entries: dict[Kind, list[dict[str, Any]]] = {kind: [] for kind in kinds}
        self._images: list[int] = []

    @property
    def examples(self) -> int:
        """Images that were added."""
        return len(self._images)

    def add(self, found: Found) -> None:
        """Adds what was found in an image."""
        image = self._truth["images"][found.image]["id"]
        self._images.append(image)
        for kind, entries in self._entries.items():
            for i, (label, score) in enumerate(zip(found.labels.tolist(), found.scores.tolist(), strict=True)):
                category = self._truth["categories"][label]["id"]
                entry = {"image_id": image, "category_id": category, "score": score}
                if kind == "bbox":
                    x1, y1, x2, y2 = found.boxes[i].tolist()
                    entries.append(entry | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
                else:
                    assert found.masks is not None, "a detector with masks finds them"
                    entries.append(entry | {"segmentation": found.masks[i]})

    def evaluations(self) -> dict[Kind, Any]:
        """Compares with the truth of the images that were added; returns a `COCOeval` for each kind, summarized."""
        return {kind: evaluate(self._truth, entries, self._images, kind) for kind, entries in self._entries.items()}

    def write(self, folder: Path) -> None:
        """Writes results.bbox.json and results.segm.json into a folder that exists, each complete or not at all.

        They are what COCO's evaluation server and `COCO.loadRes` read.

        Raises:
            InputError: a file cannot be written.
        """
        for kind, entries in self._entries.items():
            write_text(folder / f"results.{kind}.json", json.dumps(entries))


def evaluate(truth: Truth, entries: Sequence[Mapping[str, Any]], images: Sequence[int], kind: Kind) -> Any:
    """Evaluates results as COCO does, with its IoUs, areas and numbers of detections.

    An annotation's size is its "area", that of its mask in COCO's own files, for boxes as well.

    Args:
        truth: of the split.
        entries: the results, in COCO's format.
        images: ids of the images that count.
        kind: compares boxes or masks.

    Returns:
        pycocotools' `COCOeval`, summarized.
    """
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it prints at every step
        expected = _as_coco(truth)
        # `loadRes` changes what it is given, and takes no empty list.
        found = (
            expected.loadRes([dict(entry) for entry in entries]) if entries else _as_coco({**truth, "annotations": []})
        )
        evaluation = COCOeval(expected, found, kind)
        evaluation.params.imgIds = list(images)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def figures(evaluation: Any, kind: Kind) -> dict[str, float]:
    """Returns COCO's figures of an evaluation by name, as fractions; those of sizes without any object are left out."""
    found = {f"{PREFIXES[kind]}_{name}": float(value) for name, value in zip(FIGURES, evaluation.stats, strict=True)}
    always = tuple(f"{PREFIXES[kind]}_{name}" for name in FIGURES[:3])
    return {name: max(value, 0.0) for name, value in found.items() if value >= 0 or name in always}


def _as_coco(truth: Truth) -> Any:
    """Makes a `COCO` of a copy of the annotations, which it may change."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {name: [dict(entry) for entry in entries] for name, entries in truth.items()}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


class DetectionEvaluator:
    """Gathers the objects found in a pass and compares them as COCO does; implements `Evaluator`.

    Every process has all of them, and computes the same figures.

    Args:
        truth: of the split.
        kinds: "bbox", and "segm" of a detector with masks.
        folder: the main process writes the results into it; see `Results.write`.
    """

    def __init__(self, truth: Truth, kinds: Sequence[Kind], folder: Path) -> None:
        self._results = Results(truth, kinds)
        self._kinds = kinds
        self._folder = folder
        self._waiting: collections.deque[Outputs] = collections.deque()

    def step(self, model: Any, batch: Batch) -> Outputs:
        """Finds the objects of a batch; see `prediction.detect`."""
        return detect(model, batch)

    def update(self, outputs: Outputs, batch: Batch) -> None:
        del batch
        self._waiting.append(outputs)
        if len(self._waiting) > MAX_IN_FLIGHT:  # older ones are computed, and leave the device's memory
            self._add(self._waiting.popleft())

    def _add(self, outputs: Outputs) -> None:
        for _, found in by_image(jax.device_get(outputs)):
            self._results.add(found)

    def result(self) -> dict[str, float | int]:
        """Writes the results; returns `FIGURES` of boxes and masks (fractions) and "examples"."""
        while self._waiting:
            self._add(self._waiting.popleft())
        if is_main_process():
            self._write()
        values = [figures(each, kind) for kind, each in self._results.evaluations().items()]
        return {**{name: value for each in values for name, value in each.items()}, "examples": self._results.examples}

    def _write(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._results.write(self._folder)
        except (InputError, OSError) as error:  # as where a run is evaluated in a folder that is read-only
            warnings.warn(f"the results are not written: {error}", stacklevel=2)
