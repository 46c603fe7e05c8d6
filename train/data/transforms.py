"""Record transforms for classification, the same pixels as torchvision and timm make with PIL.

Training and evaluation are each an ordered list. Between `Decode` and `ToArray` a record's "image" is an RGB
`PIL.Image.Image`, which is where further augmentations belong.
"""

import dataclasses
import io
import math
from typing import Any

import grain
import numpy as np
from PIL import Image

from train.data.config import DataConfig
from train.data.records import Record
from twins_jax.errors import InputError

Transforms = list[grain.transforms.Map | grain.transforms.RandomMap]


def train_transforms(config: DataConfig) -> Transforms:
    """Returns the transforms from a `Record` to {"image": uint8 [S, S, 3], "label": int32 []}, S = image_size."""
    return [
        Decode(),
        RandomResizedCrop(config.image_size, config.crop_scale, config.crop_ratio),
        RandomHorizontalFlip(config.flip),
        ToArray(),
    ]


def eval_transforms(config: DataConfig) -> Transforms:
    """Returns the transforms from a `Record` to {"image": uint8 [S, S, 3], "label": int32 []}, S = image_size."""
    # timm.data.transforms_factory.transforms_imagenet_eval rounds down too.
    resize = math.floor(config.image_size / config.eval_crop)
    return [Decode(), ResizeShorterSide(resize), CenterCrop(config.image_size), ToArray()]


class Decode(grain.transforms.Map):
    """Encoded image -> RGB PIL image; raises InputError that names the record if PIL cannot read all of it."""

    def map(self, element: Record) -> dict[str, Any]:
        try:
            image = Image.open(io.BytesIO(element["image"])).convert("RGB")
        except Exception as error:  # PIL's readers raise anything from OSError to SyntaxError on a damaged file
            raise InputError(f"{element['name']}: not a readable image: {error}") from error
        return {**element, "image": image}


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(grain.transforms.RandomMap):
    """Crops a random area and aspect ratio and resizes it to a square (torchvision.transforms.RandomResizedCrop)."""

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float]

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image = element["image"]
        left, top, width, height = self.sample_box(image.width, image.height, rng)
        # Not resize(box=...): its filter would reach across the edges of the crop.
        image = image.crop((left, top, left + width, top + height))
        return {**element, "image": image.resize((self.size, self.size), Image.Resampling.BICUBIC)}

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

        # The largest centre crop whose aspect ratio is allowed.
        w, h = width, height
        if width / height < self.ratio[0]:
            h = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            w = round(height * self.ratio[1])
        return (width - w) // 2, (height - h) // 2, w, h


@dataclasses.dataclass(frozen=True)
class RandomHorizontalFlip(grain.transforms.RandomMap):
    """Mirrors the image left to right with a given probability."""

    probability: float

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if rng.random() >= self.probability:
            return element
        return {**element, "image": element["image"].transpose(Image.Transpose.FLIP_LEFT_RIGHT)}


@dataclasses.dataclass(frozen=True)
class ResizeShorterSide(grain.transforms.Map):
    """Resizes the shorter side to `size`, keeping the aspect ratio (torchvision.transforms.Resize, bicubic)."""

    size: int

    def map(self, element: dict[str, Any]) -> dict[str, Any]:
        width, height = element["image"].size
        longer = int(self.size * max(width, height) / min(width, height))
        size = (self.size, longer) if width <= height else (longer, self.size)
        return {**element, "image": element["image"].resize(size, Image.Resampling.BICUBIC)}


@dataclasses.dataclass(frozen=True)
class CenterCrop(grain.transforms.Map):
    """Crops the central square of an image that is at least as large (torchvision.transforms.CenterCrop)."""

    size: int

    def map(self, element: dict[str, Any]) -> dict[str, Any]:
        image = element["image"]
        # Halves go to the even neighbour, as in torchvision.
        left, top = round((image.width - self.size) / 2), round((image.height - self.size) / 2)
        return {**element, "image": image.crop((left, top, left + self.size, top + self.size))}


class ToArray(grain.transforms.Map):
    """PIL image -> uint8 [H, W, 3]; the label becomes int32 and what does not belong in a batch is dropped."""

    def map(self, element: dict[str, Any]) -> dict[str, np.ndarray | np.int32]:
        return {"image": np.asarray(element["image"]), "label": np.int32(element["label"])}
