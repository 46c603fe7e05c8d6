"""Record transforms for segmentation: image and label map are changed together, with the pixels of OpenCV.

They are those of mmseg 0.12 (`Resize`, `RandomCrop`, `RandomFlip`, `Pad`) up to the changes of color, which the device
makes (`photometric`), as upstream's `segmentation/configs/_base_/datasets/ade20k.py` sets them.
"""

import dataclasses
from typing import Any

import grain
import numpy as np

from twins_jax.errors import InputError
from twins_jax.segmentation.palette import IGNORED
from twins_jax.segmentation.preprocess import SegmentationPreprocessing

from ...data import opencv
from ...data.decode import decode
from .config import SegmentationDataConfig
from .masks import decode_mask
from .sources import SegmentationRecord

Transforms = list[grain.transforms.Map | grain.transforms.RandomMap]

REDRAWS = 10
"""Crops that are drawn in place of one with too much of one class, at most; the last is not judged."""


def train_transforms(data: SegmentationDataConfig, num_classes: int) -> Transforms:
    """Returns the transforms from a `SegmentationRecord` to a crop of its image and its label map.

    The example is {"image": uint8 [S, S, 3], "label": uint8 [S, S], "size": int32 [2]} with S = crop_size. The crop is
    in the top left, of the height and width in "size"; beyond it the image is 0 and the label `IGNORED`.

    Args:
        data: settings.
        num_classes: of the data set, at most `masks.MAX_CLASSES`.
    """
    preprocessing = SegmentationPreprocessing(data.shorter, data.longer)
    crop = RandomResizedCrop(preprocessing, data.crop_size, data.scale, data.cat_max_ratio, data.flip)
    return [Decode(num_classes, reduce_zero_label=data.source == "ade20k"), crop]


def eval_transforms(data: SegmentationDataConfig, num_classes: int) -> Transforms:
    """Returns the transforms from a `SegmentationRecord` to its whole image, resized, and its label map as it is.

    The example is {"image": uint8 [h, w, 3], "label": uint8 [H, W]}; of further `eval_scales` the images are "image_1",
    "image_2" and onward.

    Args:
        data: settings.
        num_classes: of the data set, at most `masks.MAX_CLASSES`.
    """
    preprocessing = SegmentationPreprocessing(data.shorter, data.longer)
    return [
        Decode(num_classes, reduce_zero_label=data.source == "ade20k"),
        ResizeImage(preprocessing, tuple(data.eval_scales)),
    ]


class Decode(grain.transforms.Map):
    """Encoded files -> {"image": uint8 [H, W, 3], "label": uint8 [H, W]}.

    Labels are class indices, or `IGNORED`.

    Args:
        num_classes: of the data set.
        reduce_zero_label: the mask's 0 marks pixels without a class, and its 1 is class 0.

    Raises:
        InputError: a file cannot be decoded, the sizes differ, or the mask has an index of no class. The message starts
            with the file's name.
    """

    def __init__(self, num_classes: int, *, reduce_zero_label: bool) -> None:
        self._first = int(reduce_zero_label)
        self._last = num_classes - 1 + self._first
        self._table = np.full(256, IGNORED, np.uint8)
        self._table[self._first : self._last + 1] = np.arange(num_classes)
        self._known = np.zeros(256, bool)
        self._known[[*range(self._last + 1), IGNORED]] = True

    def map(self, element: SegmentationRecord) -> dict[str, Any]:
        image = decode(element["image"], element["name"])
        label = decode_mask(element["mask"], element["mask_name"])
        if image.shape[:2] != label.shape:
            found, expected = (f"{width} x {height}" for height, width in (label.shape, image.shape[:2]))
            raise InputError(
                f"{element['mask_name']}: mask of {found} pixels; must be of {expected}, as its image {element['name']}"
            )
        unknown = np.flatnonzero(opencv.count_labels(label) * ~self._known)
        if len(unknown):
            raise InputError(
                f"{element['mask_name']}: mask with class index {unknown[0]}; must be 0 to {self._last}, or {IGNORED} "
                "where ignored"
            )
        return {"image": image, "label": self._table[label] if self._first else label}


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(grain.transforms.RandomMap):
    """Resizes by a random factor, crops at a random place, mirrors with probability `flip`, and pads to a square.

    The pixels are those of resizing the whole image and cropping it. A crop is drawn again while its labels, without
    ignored ones, are of one class alone or one class has `cat_max_ratio` of them or more, `REDRAWS` times at most.

    Attributes:
        preprocessing: the size at factor 1.
        size: side of the square, in pixels; a shorter side of the resized image stays whole.
        scale: smallest and largest factor.
        cat_max_ratio: share of the labels; at 1 no crop is drawn again.
        flip: probability.
    """

    preprocessing: SegmentationPreprocessing
    size: int
    scale: tuple[float, float]
    cat_max_ratio: float
    flip: float

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        height, width = element["label"].shape
        full_size = self.preprocessing.size(height, width, rng.uniform(*self.scale))
        height, width = min(full_size[0], self.size), min(full_size[1], self.size)
        window, label = self._crop(element["label"], full_size, (height, width), rng)
        mirror = bool(rng.random() < self.flip)
        image = opencv.resize_bilinear(element["image"], full_size, window, (height, width), mirror)
        padding = ((0, self.size - height), (0, self.size - width))
        return {
            **element,
            "image": np.pad(image, (*padding, (0, 0))),
            "label": np.pad(label[:, ::-1] if mirror else label, padding, constant_values=IGNORED),
            "size": np.array([height, width], np.int32),
        }

    def _crop(
        self, label: np.ndarray, full_size: tuple[int, int], size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[tuple[int, int], np.ndarray]:
        """Draws the top and left of the crop; returns them and the labels there, uint8 [*size]."""
        margins = full_size[0] - size[0], full_size[1] - size[1]
        redraws = REDRAWS if self.cat_max_ratio < 1 and any(margins) else 0
        while True:
            window = int(rng.integers(margins[0] + 1)), int(rng.integers(margins[1] + 1))
            crop = opencv.resize_nearest(label, full_size, window, size)
            if redraws == 0 or self._is_varied(crop):
                return window, crop
            redraws -= 1

    def _is_varied(self, label: np.ndarray) -> bool:
        counts = opencv.count_labels(label)[:IGNORED]
        return bool(np.count_nonzero(counts) > 1 and counts.max() < self.cat_max_ratio * counts.sum())


@dataclasses.dataclass(frozen=True)
class ResizeImage(grain.transforms.Map):
    """Resizes the image by each factor and leaves the labels as they are."""

    preprocessing: SegmentationPreprocessing
    scales: tuple[float, ...]

    def map(self, element: dict[str, Any]) -> dict[str, Any]:
        image = element["image"]
        height, width = image.shape[:2]
        sizes = [self.preprocessing.size(height, width, scale) for scale in self.scales]
        resized = {
            f"image_{number}" if number else "image": opencv.resize_bilinear(image, size, (0, 0), size)
            for number, size in enumerate(sizes)
        }
        return {**element, **resized}
