"""Data sets of images with boxes, and masks, of objects: folders of images with annotations in COCO's format."""

import os
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from twins_jax.decode import read_image
from twins_jax.errors import InputError, shown
from twins_jax.paths import source_path

from ...data.folder import contents, folder_entries
from ...task import DatasetInfo
from .coco import CocoFile, read_coco
from .config import DetectionDataConfig

MIN_SIDE = 32
"""Shorter side, in pixels, of the images that are learned (mmdet's `CocoDataset._filter_imgs`)."""

LAYOUTS = {
    "folder": {
        "train": ("images/train", "annotations/train.json"),
        "eval": ("images/val", "annotations/val.json"),
    },
    "coco": {
        "train": ("train2017", "annotations/instances_train2017.json"),
        "eval": ("val2017", "annotations/instances_val2017.json"),
    },
}
"""The folder of the images and the file of the annotations, by `data.source` and split."""


class DetectionRecord(TypedDict):
    """One example as it is stored."""

    image: bytes
    """An encoded image file, of a format that `decode` reads."""

    name: str
    """The image's file, for error messages."""

    row: int
    """Position of the image in the file of annotations."""

    size: tuple[int, int]
    """Height and width, as the file of annotations says."""

    boxes: np.ndarray
    """float32 [n, 4], x1, y1, x2, y2 in pixels of the image: those that are learned."""

    labels: np.ndarray
    """int32 [n], indices of classes."""

    segmentations: list[Any]
    """Polygons or RLE of each; empty where masks were not asked for."""


class DetectionSource:
    """The images of one split with their objects, in the order of the file of annotations.

    Training leaves out images without annotations, and those with a side under `MIN_SIDE`; evaluation reads them all.
    Objects are those of `CocoFile.learned`; an image of which none is left is an example without boxes. A warning
    counts the annotations that training leaves out.

    Args:
        file: the annotations.
        images: folder of the images.
        train: leave out the images that are not learned.
        max_boxes: objects of an image that are learned: the first in the file.
        require_images: refuse a missing image at once, and not when it is read.

    Raises:
        InputError: the folder or an image is missing, training has no image or no object, or evaluation no object.
    """

    def __init__(
        self, file: CocoFile, images: Path, *, train: bool, max_boxes: int, require_images: bool = True
    ) -> None:
        self.class_names = file.class_names
        self._file, self._images = file, images
        self._learned = file.learned()
        self._rows = np.arange(len(file.image_ids))
        self._max_boxes = max_boxes
        if train:
            is_annotated = np.diff(file.starts) > 0
            self._rows = np.flatnonzero(is_annotated & (file.image_sizes.min(axis=1) >= MIN_SIDE))
            self._check_learned()
        elif file.crowd.all():
            raise InputError(f"{file.path}: has no object to evaluate; must hold annotations other than crowds")
        if not os.path.isdir(images):
            raise InputError(f"{images}: no such folder; {contents(images.parent)}")
        if require_images:
            self._check_images()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> DetectionRecord:
        file, row = self._file, int(self._rows[index])
        path = self._images / file.file_names[row]
        numbers = np.arange(file.starts[row], file.starts[row + 1])
        numbers = numbers[self._learned[numbers]][: self._max_boxes]
        height, width = file.image_sizes[row].tolist()
        boxes = file.boxes[numbers]
        return {
            "image": read_image(path),
            "name": str(path),
            "row": row,
            "size": (height, width),
            "boxes": np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).astype(np.float32),
            "labels": file.labels[numbers],
            "segmentations": [] if file.segmentations is None else [*map(file.segmentation, numbers)],
        }

    @property
    def file(self) -> CocoFile:
        """The annotations, of images that are left out too."""
        return self._file

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of each image, int32 [N, 2], as the file of annotations says."""
        return self._file.image_sizes[self._rows]

    @property
    def boxes_an_image(self) -> int:
        """The largest number of objects of an image that are learned, at least 1."""
        return max(1, min(int(self._counts().max(initial=0)), self._max_boxes))

    def _counts(self) -> np.ndarray:
        """The number of objects of each image, beyond `max_boxes` too."""
        ends = np.concatenate([[0], np.cumsum(self._learned)])
        return np.diff(ends[self._file.starts])[self._rows]

    def _check_learned(self) -> None:
        file, left = self._file, self._learned
        if not len(self._rows):
            raise InputError(
                f"{file.path}: has no image to learn from; must hold annotations of images of at least {MIN_SIDE} "
                "pixels a side"
            )
        if not self._counts().any():
            raise InputError(
                f"{file.path}: has no object to learn: its {len(left)} annotations are crowds or ignored, or "
                "have boxes of less than a pixel or areas of 0; bbox must be x, y, width and height in pixels"
            )
        if not left.all():
            first = file.annotation_ids[np.flatnonzero(~left)[0]]
            why = "crowds, those with ignore, boxes of less than a pixel or areas of 0"
            warnings.warn(
                f"{file.path}: annotations that training leaves out: {(~left).sum()} of {len(left)} ({why}), the first "
                f"of the id {first}",
                stacklevel=4,
            )
        if many := int(np.maximum(self._counts() - self._max_boxes, 0).sum()):
            warnings.warn(
                f"{file.path}: objects beyond the first {self._max_boxes} of their image (data.max_boxes), which "
                f"training leaves out: {many}; one image has {self._counts().max()}",
                stacklevel=4,
            )

    def _check_images(self) -> None:
        listed: dict[str, Collection[str]] = {}
        missing = []
        for row in self._rows.tolist():
            folder, name = os.path.split(self._file.file_names[row])
            if folder not in listed:
                path = self._images / folder
                listed[folder] = {entry.name for entry in folder_entries(path)} if os.path.isdir(path) else ()
            if name not in listed[folder]:
                missing.append(row)
        if missing:
            path, image = self._images / self._file.file_names[missing[0]], self._file.image_ids[missing[0]]
            more = f", and {len(missing) - 1} more are missing" if missing[1:] else ""
            raise InputError(
                f"{shown(str(path), 300)}: no such file, which {self._file.path}: image id {image} names{more}"
            )


def open_source(config: DetectionDataConfig, split: Literal["train", "eval"], *, masks: bool) -> DetectionSource:
    """Opens one split of a data set that is in place.

    Args:
        config: names the data set.
        split: to open.
        masks: read the objects' masks, which each annotation must then have.

    Raises:
        InputError: as `read_coco` and `DetectionSource`.
    """
    images, annotations = LAYOUTS[config.source][split]
    root = source_path("data.dir", config.dir)
    return DetectionSource(
        read_coco(root / annotations, masks=masks),
        root / images,
        train=split == "train",
        max_boxes=config.max_boxes,
        require_images=config.on_error == "stop",
    )


def dataset_info(train: DetectionSource, evaluation: DetectionSource) -> DatasetInfo:
    """Returns the classes and the sizes of both splits.

    Raises:
        InputError: the categories of the two files differ, or their order does.
    """
    categories = [
        [*zip(source.file.category_ids.tolist(), source.class_names, strict=True)] for source in (train, evaluation)
    ]
    if categories[0] != categories[1]:
        differing = (pair for pair in zip(*categories, strict=False) if pair[0] != pair[1])
        expected, found = next(differing, (f"{len(categories[0])} of them", f"{len(categories[1])}"))
        raise InputError(
            f"{evaluation.file.path}: must hold the categories of {train.file.path}, in their order; the first "
            f"difference: {shown(str(found))}, must be {shown(str(expected))}"
        )
    return DatasetInfo(len(train.class_names), train.class_names, len(train), len(evaluation))
