"""Annotations in COCO's format: one JSON file of images, categories and annotations, checked and packed into arrays."""

import collections
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from twins_jax.decode import MAX_PIXELS
from twins_jax.errors import InputError, is_integer, is_number, shown
from twins_jax.files import read_object

from ...data.packed import PackedPaths
from .masks import check_segmentation

LISTS = ("images", "categories", "annotations")
"""The parts of a file that are read; others, such as "info" and "licenses", may hold anything."""

MAX_ID = 2**53
"""Bound of ids, up to which every reader of JSON keeps integers exact; COCO's crowds have ids near 10**12."""

MAX_COORDINATE = 1e6
"""Bound of coordinates, in pixels, beyond which float32 is coarser than a 16th of a pixel."""

_ID = f"an integer from 0 to {MAX_ID}"
_NUMBER = f"a number from -{MAX_COORDINATE:.0f} to {MAX_COORDINATE:.0f}"
_BOX = f"x, y, width and height in pixels, each {_NUMBER}, the last two not negative"
_FILE_NAME = "the path of a file from the folder of the images, without .. in it"


@dataclasses.dataclass(frozen=True)
class CocoFile:
    """The content of one file. Annotations are in the order of their images, and of the file among those of an image.

    Attributes:
        path: of the file.
        class_names: the categories' names, in the file's order, which decides the labels.
        category_ids: int64 [K], by label.
        image_ids: int64 [N].
        image_sizes: int32 [N, 2], height and width in pixels.
        file_names: of the images, from their folder.
        starts: int64 [N + 1], the annotations of image i are those from starts[i] to starts[i + 1].
        annotation_ids: int64 [A].
        boxes: float64 [A, 4], x, y, width and height.
        labels: int32 [A].
        areas: float64 [A], of the object's pixels as the file gives it.
        crowd: bool [A], marks regions of many objects.
        ignored: bool [A], of the key "ignore", which mmdet leaves out in training.
        segmentations: polygons or RLE of each annotation, as JSON; None where masks were not asked for.
    """

    path: Path
    class_names: tuple[str, ...]
    category_ids: np.ndarray
    image_ids: np.ndarray
    image_sizes: np.ndarray
    file_names: PackedPaths
    starts: np.ndarray
    annotation_ids: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray
    segmentations: PackedPaths | None

    def segmentation(self, annotation: int) -> Any:
        """Returns the polygons or the RLE of an annotation, by its position."""
        assert self.segmentations is not None, "the file was read without masks"
        return json.loads(self.segmentations[annotation])

    def learned(self) -> np.ndarray:
        """Returns the annotations that training learns, bool [A]: those of mmdet's `CocoDataset._parse_ann_info`.

        Left out are crowds, those with "ignore", boxes of less than a pixel in width or height, and areas of 0 or less.
        mmdet also leaves out boxes outside their image; `read_coco` refuses those of a pixel or more.
        """
        return (self.boxes[:, 2:] >= 1).all(axis=1) & (self.areas > 0) & ~self.crowd & ~self.ignored

    def ground_truth(self) -> dict[str, Any]:
        """Returns the content as a data set of `pycocotools.coco.COCO`.

        Annotations are numbered from 1: pycocotools takes one with the id 0, once it is matched, for unmatched.
        """
        image_of = np.repeat(self.image_ids, np.diff(self.starts))
        annotations: list[dict[str, Any]] = [
            {
                "id": number + 1,
                "image_id": int(image_of[number]),
                "category_id": int(self.category_ids[self.labels[number]]),
                "bbox": self.boxes[number].tolist(),
                "area": float(self.areas[number]),
                "iscrowd": int(self.crowd[number]),
            }
            for number in range(len(self.labels))
        ]
        if self.segmentations is not None:
            for number, annotation in enumerate(annotations):
                annotation["segmentation"] = self.segmentation(number)
        images = [
            {"id": int(image), "height": int(height), "width": int(width), "file_name": self.file_names[row]}
            for row, (image, (height, width)) in enumerate(zip(self.image_ids, self.image_sizes, strict=True))
        ]
        pairs = zip(self.category_ids, self.class_names, strict=True)
        categories = [{"id": int(category), "name": name} for category, name in pairs]
        return {"images": images, "categories": categories, "annotations": annotations}


def read_coco(path: Path, *, masks: bool) -> CocoFile:
    """Reads a file of annotations, and checks all of it.

    Args:
        path: of the file.
        masks: read "segmentation", which each annotation must then have; else it is not looked at.

    Raises:
        InputError: the file cannot be read, is not of COCO's format, or an entry is not what it must be. The message
            names the file and the entry.
    """
    content = read_object(path)
    entries = {name: _entries(path, content, name) for name in LISTS}
    images = [_Entry(path, "image", position, entry) for position, entry in enumerate(entries["images"])]
    categories = [_Entry(path, "category", position, entry) for position, entry in enumerate(entries["categories"])]
    for name, found in (("images", images), ("categories", categories)):
        if not found:
            raise InputError(f'{path}: has an empty list "{name}"; must hold at least one entry')
    row_of = _positions(images)
    label_of = _positions(categories)
    class_names = tuple(_class_name(entry) for entry in categories)
    name, count = collections.Counter(class_names).most_common(1)[0]
    if count > 1:
        raise InputError(f"{path}: has {count} categories of the name {shown(name)!r}; names must be distinct")
    sizes = [_image_size(entry) for entry in images]
    names = [_file_name(entry) for entry in images]

    annotations = [_Entry(path, "annotation", position, entry) for position, entry in enumerate(entries["annotations"])]
    _positions(annotations)
    rows = np.zeros(len(annotations), np.int64)
    labels = np.zeros(len(annotations), np.int32)
    boxes, areas = np.zeros((len(annotations), 4)), np.zeros(len(annotations))
    flags = np.zeros((2, len(annotations)), bool)
    segmentations: list[bytes] = []
    for number, entry in enumerate(annotations):
        rows[number] = row = _known(entry, "image_id", row_of, "the id of an image of the file")
        labels[number] = _known(entry, "category_id", label_of, "the id of a category of the file")
        boxes[number] = _box(entry, sizes[row])
        areas[number] = entry.get("area", _is_area, "a number, the object's area in pixels")
        for kind, key in enumerate(("iscrowd", "ignore")):
            if key in entry.content:
                flags[kind, number] = entry.get(key, lambda value: value in (0, 1), "0 or 1")
        if masks:
            segmentation = entry.get("segmentation", lambda _: True, "polygons or RLE, to learn masks")
            check_segmentation(segmentation, sizes[row], entry.place)
            segmentations.append(json.dumps(segmentation, separators=(",", ":")).encode())

    order = np.argsort(rows, kind="stable")
    return CocoFile(
        path=path,
        class_names=class_names,
        category_ids=np.array([*label_of], np.int64),
        image_ids=np.array([*row_of], np.int64),
        image_sizes=np.array(sizes, np.int32),
        file_names=PackedPaths(names),
        starts=np.searchsorted(rows[order], np.arange(len(images) + 1)),
        annotation_ids=np.array([entry.content["id"] for entry in annotations], np.int64)[order],
        boxes=boxes[order],
        labels=labels[order],
        areas=areas[order],
        crowd=flags[0, order],
        ignored=flags[1, order],
        # Texts are packed as paths are.
        segmentations=PackedPaths([segmentations[number] for number in order]) if masks else None,
    )


class _Entry:
    """An entry of one of the lists, and the place that messages name."""

    def __init__(self, path: Path, kind: str, position: int, content: Any) -> None:
        self._path, self._kind, self._position = path, kind, position
        self.content: Mapping[str, Any] = content if isinstance(content, dict) else {}
        if not isinstance(content, dict):
            raise InputError(f"{self.place}: is {_described(content)}; must be a JSON object")

    @property
    def place(self) -> str:
        """The file, the list and the id; or the position, from 0, where the id is none."""
        key = self.content.get("id")
        name = f"id {key}" if is_integer(key, 0, MAX_ID) else f"at position {self._position}"
        return f"{self._path}: {self._kind} {name}"

    def get(self, key: str, is_right: Callable[[Any], bool], allowed: str) -> Any:
        """Returns the value of a key; raises InputError if it is missing or not right."""
        if key not in self.content:
            raise InputError(f'{self.place}: has no "{key}"; must be {allowed}')
        value = self.content[key]
        if not is_right(value):
            raise InputError(f"{self.place}: {key}={_described(value)}; must be {allowed}")
        return value


def _described(value: Any) -> str:
    return shown(json.dumps(value))


def _entries(path: Path, content: Mapping[str, Any], name: str) -> list[Any]:
    found = content.get(name)
    if not isinstance(found, list):
        what = f'"{name}" is {_described(found)}' if name in content else f'has no "{name}"'
        raise InputError(f"{path}: {what}; must be of COCO's format, with lists of {', '.join(LISTS)}")
    return found


def _positions(entries: list[_Entry]) -> dict[int, int]:
    """Returns the position of each entry by its id, in the file's order."""
    found: dict[int, int] = {}
    for position, entry in enumerate(entries):
        key = entry.get("id", lambda value: is_integer(value, 0, MAX_ID), _ID)
        if key in found:
            raise InputError(f"{entry.place}: the entry at position {found[key]} has the same id; ids must be distinct")
        found[key] = position
    return found


def _class_name(entry: _Entry) -> str:
    name = entry.get("name", lambda value: isinstance(value, str) and bool(value.strip()), "the category's name")
    return str(name)


def _image_size(entry: _Entry) -> tuple[int, int]:
    height, width = (
        entry.get(key, lambda value: is_integer(value, 1), "an integer from 1") for key in ("height", "width")
    )
    if height * width > MAX_PIXELS:
        raise InputError(f"{entry.place}: is of {width} x {height} pixels; at most {MAX_PIXELS:,} are decoded")
    return height, width


def _file_name(entry: _Entry) -> bytes:
    try:
        return str(entry.get("file_name", _is_file_name, _FILE_NAME)).encode()
    except UnicodeEncodeError as error:  # half of a pair of surrogates, which JSON can hold
        raise InputError(f"{entry.place}: file_name={_described(entry.content['file_name'])}: is no UTF-8") from error


def _is_file_name(value: Any) -> bool:
    if not isinstance(value, str) or any(ord(character) < 32 for character in value):
        return False
    return bool(value) and not value.startswith("/") and not value.endswith("/") and ".." not in value.split("/")


def _known(entry: _Entry, key: str, positions: Mapping[int, int], allowed: str) -> int:
    value = entry.get(key, lambda value: is_integer(value, 0, MAX_ID) and value in positions, allowed)
    return positions[value]


def _box(entry: _Entry, size: tuple[int, int]) -> list[float]:
    box: list[float] = entry.get("bbox", _is_box, _BOX)
    x, y, width, height = box
    # mmdet passes over boxes outside. They are mistakes: of the unit, the order of the four, or the image's size.
    if width >= 1 and height >= 1 and not (-width < x < size[1] and -height < y < size[0]):
        raise InputError(
            f"{entry.place}: bbox={_described(box)}: is outside its image of {size[1]} x {size[0]} pixels; must be "
            "x, y, width and height in pixels"
        )
    return box


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_coordinate, value)) and min(value[2:]) >= 0


def _is_coordinate(value: Any) -> bool:
    return is_number(value) and abs(value) <= MAX_COORDINATE  # which NaN is not


def _is_area(value: Any) -> bool:
    return is_number(value) and abs(value) <= MAX_COORDINATE**2
