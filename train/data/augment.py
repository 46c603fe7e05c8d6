"""RandAugment with timm's operations, in the variant of the recipe: rand-m9-mstd0.5-inc1.

Every operation gives the pixels of `timm.data.auto_augment` at the same argument, with bicubic interpolation and the
mean color outside the image, as `timm.data.create_transform(interpolation="bicubic")` sets them. Where several ways to
compute an operation give the same pixels, the fastest stands here.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import grain
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from . import pixels

FILL = (124, 116, 104)
"""ImageNet's mean color (0.485, 0.456, 0.406), x 255."""

MAX_LEVEL = 10.0
"""The scale of magnitudes (timm's _LEVEL_DENOM)."""


def auto_contrast(image: np.ndarray) -> np.ndarray:
    """Stretches each channel to 0..255."""
    return np.asarray(ImageOps.autocontrast(Image.fromarray(image)))


def equalize(image: np.ndarray) -> np.ndarray:
    """Makes the histogram of each channel as even as it gets."""
    return np.asarray(ImageOps.equalize(Image.fromarray(image)))


def invert(image: np.ndarray) -> np.ndarray:
    """Returns the negative."""
    return ~image


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotates counter-clockwise about the center."""
    return np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BICUBIC, fillcolor=FILL))


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keeps the highest `bits` of each value; 0 gives a black image, for which Pillow 13's function has an error."""
    return image & np.uint8(256 - (1 << (8 - bits)))


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    """Inverts the values from `threshold` on."""
    table = np.arange(256, dtype=np.uint8)
    table[threshold:] = ~table[threshold:]
    return pixels.look_up(image, table)


def solarize_add(image: np.ndarray, amount: int) -> np.ndarray:
    """Adds `amount`, at most 128, to the values below 128."""
    table = np.arange(256, dtype=np.uint8)
    table[:128] += np.uint8(amount)
    return pixels.look_up(image, table)


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Scales the saturation."""
    return np.asarray(ImageEnhance.Color(Image.fromarray(image)).enhance(factor))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Scales the distance to the mean gray."""
    return np.asarray(ImageEnhance.Contrast(Image.fromarray(image)).enhance(factor))


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Scales the values."""
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(image)).enhance(factor))


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Scales the distance to a smoothed image."""
    return np.asarray(ImageEnhance.Sharpness(Image.fromarray(image)).enhance(factor))


def shear_x(image: np.ndarray, factor: float) -> np.ndarray:
    """Moves the pixel at (x + factor y, y) to (x, y)."""
    return pixels.shift_rows(image, factor * (np.arange(image.shape[0]) + 0.5), FILL)


def shear_y(image: np.ndarray, factor: float) -> np.ndarray:
    """Moves the pixel at (x, y + factor x) to (x, y)."""
    return pixels.transpose(shear_x(pixels.transpose(image), factor))


def translate_x(image: np.ndarray, fraction: float) -> np.ndarray:
    """Moves the image left by `fraction` of its width."""
    height, width = image.shape[:2]
    return pixels.shift_rows(image, np.full(height, fraction * width), FILL)


def translate_y(image: np.ndarray, fraction: float) -> np.ndarray:
    """Moves the image up by `fraction` of its height."""
    return pixels.transpose(translate_x(pixels.transpose(image), fraction))


def _steps(level: float, steps: int) -> int:
    return int(level / MAX_LEVEL * steps)


def _enhancement(level: float, sign: int) -> float:
    return max(0.1, 1.0 + sign * (level / MAX_LEVEL * 0.9))


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation, and its argument as a function of the level, 0..10, and of a random sign, 1 or -1."""

    apply: Callable[..., np.ndarray]
    argument: Callable[[float, int], float] | None = None

    def __call__(self, image: np.ndarray, level: float, sign: int) -> np.ndarray:
        return self.apply(image) if self.argument is None else self.apply(image, self.argument(level, sign))


# timm.data.auto_augment: _RAND_INCREASING_TRANSFORMS and LEVEL_TO_ARG. The effect of each grows with the level.
OPERATIONS = {
    "AutoContrast": Operation(auto_contrast),
    "Equalize": Operation(equalize),
    "Invert": Operation(invert),
    "Rotate": Operation(rotate, lambda level, sign: sign * (level / MAX_LEVEL * 30.0)),
    "PosterizeIncreasing": Operation(posterize, lambda level, _: 4 - _steps(level, 4)),
    "SolarizeIncreasing": Operation(solarize, lambda level, _: 256 - _steps(level, 256)),
    "SolarizeAdd": Operation(solarize_add, lambda level, _: _steps(level, 110)),
    "ColorIncreasing": Operation(color, _enhancement),
    "ContrastIncreasing": Operation(contrast, _enhancement),
    "BrightnessIncreasing": Operation(brightness, _enhancement),
    "SharpnessIncreasing": Operation(sharpness, _enhancement),
    "ShearX": Operation(shear_x, lambda level, sign: sign * (level / MAX_LEVEL * 0.3)),
    "ShearY": Operation(shear_y, lambda level, sign: sign * (level / MAX_LEVEL * 0.3)),
    "TranslateXRel": Operation(translate_x, lambda level, sign: sign * (level / MAX_LEVEL * 0.45)),
    "TranslateYRel": Operation(translate_y, lambda level, sign: sign * (level / MAX_LEVEL * 0.45)),
}
NAMES = tuple(OPERATIONS)


@dataclasses.dataclass(frozen=True)
class RandAugment(grain.transforms.RandomMap):
    """Applies `layers` operations, drawn with replacement, each with probability 1/2 (Cubuk et al. 2019).

    The level of each is normal with mean `magnitude` and standard deviation `std`, clipped to 0..10.
    """

    layers: int
    magnitude: float
    std: float

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image = element["image"]
        for name, level, sign in self.draw(rng):
            image = OPERATIONS[name](image, level, sign)
        return {**element, "image": image}

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float, int]]:
        """Returns the operations to apply in turn: name, level, sign."""
        drawn = []
        for index in rng.integers(len(NAMES), size=self.layers):
            if rng.random() < 0.5:
                level = min(max(rng.normal(self.magnitude, self.std), 0.0), MAX_LEVEL)
                drawn.append((NAMES[index], level, 1 if rng.random() < 0.5 else -1))
        return drawn
