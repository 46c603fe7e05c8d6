"""Record transforms for detection: image, boxes and masks are changed together, with the pixels of OpenCV.

They are those of mmdet 2.8 (`Resize`, `RandomFlip`, `AutoAugment`, `RandomCrop`, `Pad`), as upstream's
`detection/configs` set them.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from twins_jax.config import MIN_IMAGE_SIZE
from twins_jax.detection.preprocess import DetectionPreprocessing
from twins_jax.errors import InputError

from ...data import opencv
from ...data.decode import decode
from .config import DetectionDataConfig
from .masks import draw, pack_bits
from .shapes import Size, fitted_size
from .sources import DetectionRecord

Transforms = list[grain.transforms.Map | grain.transforms.RandomMap]

SCALES = tuple(step / 25 for step in range(15, 26))
"""multi_scale: shares of the shorter side, each as likely: 480, 512, ..., 800 of 800."""

CROPPED_SCALES = (400 / 800, 500 / 800, 600 / 800)
"""multi_scale: those before a crop."""

CROP_RANGE = (384 / 800, 600 / 800)
"""multi_scale: smallest and largest side of a crop."""


def train_transforms(data: DetectionDataConfig, shape: Size, boxes: int, *, masks: bool) -> Transforms:
    """Returns the transforms from a `DetectionRecord` to an image of a static shape with its objects.

    The example is {"image": uint8 [H, W, 3], "size": int32 [2], "boxes": float32 [G, 4], "labels": int32 [G],
    "valid": bool [G]}, and with masks "masks": uint8 [G, H, W / 8], the bits that `masks.unpack_bits` unpacks. The
    image is in the top left, of the height and width in "size"; all is 0 beyond it, and beyond the objects.

    Args:
        data: settings.
        shape: H and W, as `training_shape` gives them.
        boxes: G, as `DetectionSource.boxes_an_image` gives it.
        masks: of records that have them.
    """
    preprocessing = DetectionPreprocessing(data.shorter, data.longer)
    kind = RandomCropResizeFlip if data.multi_scale else RandomFlipResize
    return [Decode(masks=masks), kind(preprocessing, shape, boxes, data.flip)]


def eval_transforms(data: DetectionDataConfig) -> Transforms:
    """Returns the transforms from a `DetectionRecord` to its resized image.

    The example is {"image": uint8 [h, w, 3], "size": int32 [2] (h, w), "scale": float32 [2], the resized height and
    width divided by those of the image, "original": int32 [2], those of the image, "id": int32 [], its position in the
    file of annotations}.
    """
    return [Decode(masks=False), ResizeImage(DetectionPreprocessing(data.shorter, data.longer))]


class View(NamedTuple):
    """A resized image, a window of it, and its mirror image: the arguments of `opencv.resize_bilinear`.

    Attributes:
        full_size: height and width of the whole resized image.
        window: top and left of the window.
        size: height and width of the window.
        mirror: exchange left and right of the window.
    """

    full_size: Size
    window: Size
    size: Size
    mirror: bool

    def boxes(self, boxes: np.ndarray, size: Size) -> np.ndarray:
        """Returns the boxes in the view, float32 [n, 4], clipped to it; those outside have no area.

        Args:
            boxes: float32 [n, 4], x1, y1, x2, y2.
            size: height and width of the image that they are of.
        """
        scale = np.array([self.full_size[1] / size[1], self.full_size[0] / size[0]] * 2, np.float32)
        boxes = boxes * scale - np.array(self.window[::-1] * 2, np.float32)
        boxes = np.clip(boxes, 0, np.array(self.size[::-1] * 2, np.float32))
        if self.mirror:
            boxes[:, [0, 2]] = self.size[1] - boxes[:, [2, 0]]
        return boxes


class Decode(grain.transforms.Map):
    """`DetectionRecord` -> {"image": uint8 [H, W, 3], "boxes", "labels", "row"}, and "bitmaps", uint8 [H, W] each.

    The image is turned as its EXIF data says, as in mmdet and by `twins_jax.detect`.

    Args:
        masks: draw the bitmaps.

    Raises:
        InputError: the image cannot be decoded, or is of another size than the annotations say. The message starts with
            the file's name.
    """

    def __init__(self, *, masks: bool) -> None:
        self._masks = masks

    def map(self, element: DetectionRecord) -> dict[str, Any]:
        image = decode(element["image"], element["name"], exif_orientation=True)
        size = element["size"]
        if image.shape[:2] != size:
            found, expected = (f"{width} x {height}" for height, width in (image.shape[:2], size))
            raise InputError(
                f"{element['name']}: image of {found} pixels; must be of {expected}, as its annotations say"
            )
        example = {"image": image, "boxes": element["boxes"], "labels": element["labels"], "row": element["row"]}
        if self._masks:
            example["bitmaps"] = [draw(segmentation, size) for segmentation in element["segmentations"]]
        return example


@dataclasses.dataclass(frozen=True)
class RandomViews(grain.transforms.RandomMap, abc.ABC):
    """Views drawn at random, each of the one before; the last is padded to a static shape.

    Attributes:
        preprocessing: the largest size.
        shape: height and width of the example.
        max_boxes: places for objects; of more, the first in the file are kept.
        flip: probability of a mirror image.
    """

    preprocessing: DetectionPreprocessing
    shape: Size
    max_boxes: int
    flip: float

    @abc.abstractmethod
    def views(self, size: Size, rng: np.random.Generator) -> list[View]:
        """Draws the views of an image of this height and width."""

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image, boxes = element["image"], element["boxes"]
        views = self.views(image.shape[:2], rng)
        for view in views:
            boxes = view.boxes(boxes, image.shape[:2])
            image = opencv.resize_bilinear(image, *view)
        kept = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))[: self.max_boxes]
        height, width = image.shape[:2]
        example = {name: value for name, value in element.items() if name not in ("bitmaps", "row")}
        example |= {
            "image": np.zeros((*self.shape, 3), np.uint8),
            "size": np.array([height, width], np.int32),
            "boxes": np.zeros((self.max_boxes, 4), np.float32),
            "labels": np.zeros(self.max_boxes, np.int32),
            "valid": np.arange(self.max_boxes) < len(kept),
        }
        example["image"][:height, :width] = image
        example["boxes"][: len(kept)] = boxes[kept]
        example["labels"][: len(kept)] = element["labels"][kept]
        if "bitmaps" in element:
            example["masks"] = np.zeros((self.max_boxes, self.shape[0], self.shape[1] // 8), np.uint8)
            for number, bits in zip(kept, example["masks"], strict=False):
                pack_bits(_viewed(element["bitmaps"][number], views), bits)
        return example


def _viewed(bitmap: np.ndarray, views: Sequence[View]) -> np.ndarray:
    for view in views:
        bitmap = opencv.resize_nearest(bitmap, *view)
    return bitmap


class RandomFlipResize(RandomViews):
    """Resizes, then mirrors: the published 1x schedules."""

    def views(self, size: Size, rng: np.random.Generator) -> list[View]:
        resized = fitted_size(size, self.preprocessing, self.shape)
        return [View(resized, (0, 0), resized, bool(rng.random() < self.flip))]


class RandomCropResizeFlip(RandomViews):
    """Mirrors, then resizes to a drawn shorter side; half of the images are cropped before: the published 3x schedules.

    A crop is of an image resized to one of `CROPPED_SCALES`, of a height and a width drawn from `CROP_RANGE`, at a
    random place. Objects outside of it are dropped, and an image without any is kept.
    """

    def views(self, size: Size, rng: np.random.Generator) -> list[View]:
        views = [View(size, (0, 0), size, bool(rng.random() < self.flip))]
        if rng.random() < 0.5:
            resized = self._scaled(CROPPED_SCALES, rng).size(*size)
            low, high = (round(share * self.preprocessing.shorter) for share in CROP_RANGE)
            height, width = (int(rng.integers(min(side, low), min(side, high) + 1)) for side in resized)
            top, left = int(rng.integers(resized[0] - height + 1)), int(rng.integers(resized[1] - width + 1))
            views.append(View(resized, (top, left), (height, width), False))
            size = height, width
        resized = fitted_size(size, self._scaled(SCALES, rng), self.shape)
        return [*views, View(resized, (0, 0), resized, False)]

    def _scaled(self, scales: Sequence[float], rng: np.random.Generator) -> DetectionPreprocessing:
        share = scales[int(rng.integers(len(scales)))]
        shorter = max(MIN_IMAGE_SIZE, round(share * self.preprocessing.shorter))
        return dataclasses.replace(self.preprocessing, shorter=shorter)


@dataclasses.dataclass(frozen=True)
class ResizeImage(grain.transforms.Map):
    """Resizes the image, and keeps what leads back from it: see `eval_transforms`."""

    preprocessing: DetectionPreprocessing

    def map(self, element: dict[str, Any]) -> dict[str, Any]:
        image = element["image"]
        original = np.array(image.shape[:2], np.int32)
        size = self.preprocessing.size(*original.tolist())
        example = {name: value for name, value in element.items() if name not in ("boxes", "labels", "row")}
        return example | {
            "image": opencv.resize_bilinear(image, size, (0, 0), size),
            "size": np.array(size, np.int32),
            "scale": (np.array(size) / original).astype(np.float32),
            "original": original,
            "id": np.int32(element["row"]),
        }
