"""Record transforms for classification, the same pixels as torchvision and timm make with PIL.

Training and evaluation are each an ordered list. Between the first and the last transform a record's "image" is a
contiguous uint8 array [H, W, 3], which is where further augmentations belong.
"""

import dataclasses
import math
from typing import Any

import grain
import numpy as np

from twins_jax.preprocess import Preprocessing, center_crop

from ...data import pixels
from ...data.augment import RandAugment
from ...data.decode import decode
from ...data.records import SKIPPED, Record
from .config import ClassificationDataConfig

Transforms = list[grain.transforms.Map | grain.transforms.RandomMap]


def train_transforms(config: ClassificationDataConfig) -> Transforms:
    """Returns the transforms from a `Record` to {"image": uint8 [S, S, 3], "label"}, S = image_size.

    The label is int32 [], or bool [classes] of a multi-label source.
    """
    transforms: Transforms = [
        Decode(),
        RandomResizedCrop(config.image_size, config.crop_scale, config.crop_ratio, config.flip),
    ]
    if config.rand_augment_layers:
        augment = RandAugment(config.rand_augment_layers, config.rand_augment_magnitude, config.rand_augment_std)
        transforms.append(augment)
    return [*transforms, ToExample()]


def eval_transforms(config: ClassificationDataConfig) -> Transforms:
    """Returns the transforms from a `Record` to {"image": uint8 [S, S, 3], "label"}, S = image_size.

    The label is int32 [], or bool [classes] of a multi-label source.
    """
    return [Decode(), ResizedCenterCrop(Preprocessing(config.image_size, config.eval_crop)), ToExample()]


class Decode(grain.transforms.Map):
    """Encoded image -> uint8 [H, W, 3]; raises InputError that names the record if it cannot be read."""

    def map(self, element: Record) -> dict[str, Any]:
        return {**element, "image": decode(element["image"], element["name"])}


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(grain.transforms.RandomMap):
    """Crops a random area and aspect ratio, resizes it to a square and mirrors it with probability `flip`.

    The pixels are those of torchvision.transforms.RandomResizedCrop (bicubic) and RandomHorizontalFlip.
    """

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: float

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image = element["image"]
        height, width = image.shape[:2]
        left, top, width, height = self.sample_box(width, height, rng)
        # A copy of the part, not a window of the whole: the filter must not reach across the edges of the crop.
        crop = image[top : top + height, left : left + width]
        size = self.size, self.size
        return {**element, "image": pixels.resize(crop, size, (0, 0), size, bool(rng.random() < self.flip))}

    def sample_box(self, width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Returns (left, top, width, height) of a random crop of an image of the given size, in pixels."""
        log_ratio = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = width * height * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(*log_ratio))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top = int(rng.integers(0, height - h + 1))
                left = int(rng.integers(0, width - w + 1))
                return left, top, w, h

        # The largest center crop whose aspect ratio is allowed; of a line of pixels torchvision can leave none.
        w, h = width, height
        if width / height < self.ratio[0]:
            h = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            w = max(1, round(height * self.ratio[1]))
        return (width - w) // 2, (height - h) // 2, w, h


@dataclasses.dataclass(frozen=True)
class ResizedCenterCrop(grain.transforms.Map):
    """Resizes the shorter side and cuts out the central square, as `twins_jax.preprocess` does, in less time."""

    preprocessing: Preprocessing

    def map(self, element: dict[str, Any]) -> dict[str, Any]:
        return {**element, "image": center_crop(element["image"], self.preprocessing, pixels.resize)}


class ToExample(grain.transforms.Map):
    """Makes an index int32 and drops all fields but the image, the label and `SKIPPED`."""

    def map(self, element: dict[str, Any]) -> dict[str, Any]:
        label = element["label"]
        example = {"image": element["image"], "label": np.int32(label) if np.ndim(label) == 0 else label}
        return {**example, SKIPPED: element[SKIPPED]} if SKIPPED in element else example
