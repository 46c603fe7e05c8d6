"""A page that shows where a detector errs: AP by class, and the images, false positives and misses that are worst."""

import collections
import heapq
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from twins_jax import page
from twins_jax.detection.masks import paste_masks
from twins_jax.files import write_text
from twins_jax.segmentation.preprocess import resize_nearest
from twins_jax.visualize import detection_overlay

from ...task import Batch
from .masks import draw
from .metrics import PREFIXES, Kind, Results, Truth, figures
from .prediction import Found, Outputs, by_image, detect
from .shapes import Size

if TYPE_CHECKING:
    from PIL import Image

MAX_SHOWN = 12
"""Pairs of pictures in each part of the page."""

PICTURE = 480
"""Largest side of the pictures in the page, in pixels."""

MIN_SCORE = 0.3
"""Lower scores are not drawn, are no false positives, and find nothing."""

MIN_IOU = 0.5
"""Of a detection and the object that it finds."""

MARGIN = 0.75
"""Around the box that a picture shows, as a share of its longer side."""

_STYLE = f"""
td:first-child, th:first-child {{ text-align: left; }}
figure {{ margin: 1.2em 0; }}
figure div {{ display: grid; grid-template-columns: repeat(2, minmax(0, {PICTURE}px)); gap: .4em; }}
figure img {{ width: 100%; }}
"""


class Objects(NamedTuple):
    """The objects of an image, in the pixels of a picture of it.

    Attributes:
        boxes: float32 [N, 4].
        labels: int32 [N].
        scores: float32 [N]; None of the truth.
        masks: bool [N, H, W]; None where there are none.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None
    masks: np.ndarray | None = None


class Errors(NamedTuple):
    """The errors of a detector in an image.

    Attributes:
        false: bool [N], detections of `MIN_SCORE` that find no object, or one that a better detection has found.
        missed: bool [G], objects that none finds; crowds are not among them.
    """

    false: np.ndarray
    missed: np.ndarray


class Shown(NamedTuple):
    """Two pictures, the truth and the detections. Ordered by weight, then the first image before the others."""

    weight: float
    negative_number: int
    truth: np.ndarray
    found: np.ndarray
    caption: str


class Case(NamedTuple):
    """A place in an image that may be worth two pictures.

    Attributes:
        kept: the pictures of its kind, a heap.
        weight: decides whether it is among the worst.
        box: float32 [4], in pixels of the network's input; None: the whole image.
        caption: plain text.
    """

    kept: list[Shown]
    weight: float
    box: np.ndarray | None
    caption: str


def find_errors(found: Found, annotations: Sequence[Mapping[str, Any]], labels: Mapping[Any, int]) -> Errors:
    """Matches detections with the annotations of an image, in order of score, as COCO does at an IoU of 0.5.

    A detection takes the object of its class with the largest IoU that no better one has taken. One that is within a
    crowd is no error.

    Args:
        found: in pixels of the file.
        annotations: of the image, in COCO's format.
        labels: category id -> label.
    """
    from pycocotools import mask

    crowds = np.array([each["iscrowd"] for each in annotations], bool)
    false, missed = np.zeros(len(found.scores), bool), ~crowds
    if not len(annotations):
        return Errors(found.scores >= MIN_SCORE, missed)
    of_truth = np.array([labels[each["category_id"]] for each in annotations])
    corners = found.boxes.astype(np.float64)
    sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    boxes = np.array([each["bbox"] for each in annotations], np.float64)
    ious = np.asarray(mask.iou(sides, boxes, crowds.astype(np.uint8))).reshape(len(sides), len(boxes))
    for i in np.argsort(-found.scores, kind="stable"):
        if found.scores[i] < MIN_SCORE:
            break
        near = np.where((of_truth == found.labels[i]) & (missed | crowds), ious[i], -1.0)
        own = np.where(crowds, -1.0, near)
        if own.max() >= MIN_IOU:
            missed[own.argmax()] = False
        else:
            false[i] = near.max() < MIN_IOU
    return Errors(false, missed)


class ReportEvaluator:
    """Finds the objects of a split and writes FOLDER/index.html; implements `Evaluator`.

    Args:
        folder: made if missing; an older report in it is replaced.
        truth: of the split.
        kinds: "bbox", and "segm" of a detector with masks.
    """

    def __init__(self, folder: Path, truth: Truth, kinds: Sequence[Kind]) -> None:
        self._folder = folder
        self._truth = truth
        self._annotations = collections.defaultdict[int, list[Mapping[str, Any]]](list)
        for each in truth["annotations"]:
            self._annotations[each["image_id"]].append(each)
        self._labels = {each["id"]: label for label, each in enumerate(truth["categories"])}
        self._class_names = [page.printable(str(each["name"])) for each in truth["categories"]]
        self._results = Results(truth, kinds)
        self._images: list[Shown] = []
        self._false: list[Shown] = []
        self._missed: list[Shown] = []
        self._number = 0

    def step(self, model: Any, batch: Batch) -> Outputs:
        """Finds the objects of a batch; see `prediction.detect`."""
        return detect(model, batch)

    def update(self, outputs: Outputs, batch: Batch) -> None:
        """Takes in a batch of this process, and keeps pictures of the worst errors."""
        arrays = jax.device_get(outputs)
        images, sizes = np.asarray(batch["image"]), np.asarray(batch["size"])
        for row, found in by_image(arrays):
            self._results.add(found)
            annotations = self._annotations[self._truth["images"][found.image]["id"]]
            height, width = sizes[row].tolist()
            own = {name: value[row] for name, value in arrays.items()}
            self._keep(images[row, :height, :width], annotations, found, own)

    def result(self) -> dict[str, float | int]:
        """Writes the file; returns "examples"."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_text(self._folder / "index.html", self._page())
        return {"examples": self._results.examples}

    def _keep(self, image: np.ndarray, annotations: Sequence[Mapping[str, Any]], found: Found, arrays: Outputs) -> None:
        """Keeps pictures of an image, of its worst false positive and of its largest miss, if they are among the worst.

        Args:
            image: uint8 [H, W, 3], the network's input without padding.
            annotations: of the image.
            found: in it.
            arrays: the image's rows of the outputs.
        """
        errors = find_errors(found, annotations, self._labels)
        name, names = str(self._truth["images"][found.image]["file_name"]), self._class_names
        boxes = _scaled(annotations, arrays["scale"])
        counts = int(errors.false.sum()), int(errors.missed.sum())
        caption = f"{name}: {counts[0]} false positives, {counts[1]} of {len(boxes)} objects missed"
        cases = [Case(self._images, sum(counts), None, caption)]
        if errors.false.any():
            worst = int(np.where(errors.false, found.scores, -1).argmax())
            score = float(found.scores[worst])
            caption = f"{name}: {names[found.labels[worst]]}, score {score:.0%}"
            cases.append(Case(self._false, score, arrays["boxes"][worst], caption))
        if errors.missed.any():
            areas = [_area(each) for each in annotations]
            worst = int(np.where(errors.missed, areas, -1).argmax())
            label = self._labels[annotations[worst]["category_id"]]
            cases.append(Case(self._missed, areas[worst], boxes[worst], f"{name}: {names[label]}"))
        self._number += 1
        cases = [case for case in cases if case.weight > (0 if len(case.kept) < MAX_SHOWN else case.kept[0].weight)]
        if not cases:
            return
        height, width = arrays["original"].tolist()
        truth = Objects(
            boxes,
            np.array([self._labels[each["category_id"]] for each in annotations], np.int32),
            masks=_masks(annotations, (height, width), image.shape[:2]) if found.masks is not None else None,
        )
        drawn = [self._draw(image, objects) for objects in (truth, _detected(arrays, image.shape[:2]))]
        for kept, weight, box, caption in cases:
            window = (0, 0, image.shape[1], image.shape[0]) if box is None else _window(box, image.shape[:2])
            pictures = [picture.crop(window) for picture in drawn]
            for picture in pictures:
                picture.thumbnail((PICTURE, PICTURE))
            left, right = map(np.asarray, pictures)
            heapq.heappush(kept, Shown(weight, -self._number, left, right, caption))
            if len(kept) > MAX_SHOWN:
                heapq.heappop(kept)

    def _draw(self, image: np.ndarray, objects: Objects) -> "Image.Image":
        boxes, labels, scores, masks = objects
        return detection_overlay(image, boxes, labels, scores=scores, masks=masks, class_names=self._class_names)

    def _page(self) -> str:
        evaluations = self._results.evaluations()
        values = {name: value for kind, each in evaluations.items() for name, value in figures(each, kind).items()}
        title = f"Evaluation: box AP {values['box_ap']:.2%} of {self._results.examples} images"
        names = {category: page.text(self._class_names[label]) for category, label in self._labels.items()}
        drawn = f"Left the truth, right the detections with a score of at least {MIN_SCORE}."
        body = f"""\
<p>{", ".join(f"{name} {value:.2%}" for name, value in values.items())}</p>
<h2>Classes by AP</h2>{_classes(evaluations, names)}
<h2>Images with the most errors</h2>
<p>{drawn} An object is found by a detection of its class with an IoU of at least {MIN_IOU}.</p>{_figures(self._images)}
<h2>False positives of the highest scores</h2>
<p>{drawn} In the middle the detection that finds no object, one of each image.</p>{_figures(self._false)}
<h2>The largest objects that are missed</h2>
<p>{drawn} In the middle the object, one of each image.</p>{_figures(self._missed)}"""
        return page.document(title, _STYLE, body)


def _scaled(annotations: Sequence[Mapping[str, Any]], scale: np.ndarray) -> np.ndarray:
    """Returns the boxes of annotations, float32 [N, 4], in the pixels of the network's input."""
    boxes = np.array([each["bbox"] for each in annotations], np.float32).reshape(-1, 4)
    boxes[:, 2:] = boxes[:, :2] + np.maximum(boxes[:, 2:], 0)
    return boxes * np.array([scale[1], scale[0], scale[1], scale[0]], np.float32)


def _masks(annotations: Sequence[Mapping[str, Any]], original: Size, size: Size) -> np.ndarray:
    """Returns the masks of annotations, bool [N, *size], resized from the `original` height and width of the file."""
    bitmaps = [resize_nearest(draw(each["segmentation"], original), size) for each in annotations]
    return np.array(bitmaps, bool).reshape(-1, *size)


def _detected(arrays: Outputs, size: Size) -> Objects:
    """Returns the detections of an image that are drawn, in the same pixels."""
    shown = arrays["valid"] & (arrays["scores"] >= MIN_SCORE)
    boxes, labels, scores = (arrays[name][shown] for name in ("boxes", "labels", "scores"))
    masks = paste_masks(arrays["masks"][shown], boxes, *size) if "masks" in arrays else None
    return Objects(boxes, labels, scores, masks)


def _window(box: np.ndarray, size: Size) -> tuple[int, int, int, int]:
    """Returns the left, top, right and bottom of what a picture shows of a box and around it."""
    left, top, right, bottom = box.tolist()
    margin = max(8.0, MARGIN * max(right - left, bottom - top))
    columns = max(0, int(left - margin)), min(size[1], int(right + margin) + 1)
    rows = max(0, int(top - margin)), min(size[0], int(bottom + margin) + 1)
    return columns[0], rows[0], max(columns[1], columns[0] + 1), max(rows[1], rows[0] + 1)


def _area(annotation: Mapping[str, Any]) -> float:
    _, _, width, height = annotation["bbox"]
    return float(width * height)


def _classes(evaluations: Mapping[Kind, Any], names: Mapping[Any, str]) -> str:
    """Returns the table of the classes that have objects, the lowest box AP first; `names` are by category id."""
    first = evaluations["bbox"]  # classes and objects are those of every kind
    images = set(first.params.imgIds)
    counts = collections.Counter(
        each["category_id"]
        for each in first.cocoGt.dataset["annotations"]
        if each["image_id"] in images and not each["iscrowd"]
    )
    head, columns = ["<th>class<th>objects"], []
    for kind, evaluation in evaluations.items():
        precision = evaluation.eval["precision"][..., 0, -1]  # [IoU, recall, class] of all sizes, of 100 detections
        head.append(f"<th>{PREFIXES[kind]} AP<th>{PREFIXES[kind]} AP50")
        columns += [precision.mean(axis=(0, 1)), precision[0].mean(axis=0)]
    rows = []
    for index in np.argsort(columns[0], kind="stable"):
        category = first.params.catIds[index]
        if counts[category]:
            cells = "".join(f"<td>{column[index]:.1%}" for column in columns)
            rows.append(f"<tr><td>{names[category]}<td>{counts[category]}{cells}")
    return f"<table><tr>{''.join(head)}{''.join(rows)}</table>"


def _figures(shown: Sequence[Shown]) -> str:
    if not shown:
        return "<p>None.</p>"
    return "".join(
        f"<figure><div>{page.thumbnail(each.truth, PICTURE)}{page.thumbnail(each.found, PICTURE)}</div>"
        f"<figcaption>{page.text(each.caption)}</figcaption></figure>"
        for each in sorted(shown, reverse=True)
    )
