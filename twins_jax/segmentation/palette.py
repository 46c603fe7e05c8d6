"""Colors of classes, for masks and for overlays on photographs."""

import numpy as np

IGNORED = 255
"""Label of pixels without a class, in masks of 8 bits."""


def _oklab(rgb: np.ndarray) -> np.ndarray:
    """Returns colors in a space where distance is what the eye sees: uint8 [N, 3] sRGB -> float64 [N, 3] OKLab.

    From Björn Ottosson, "A perceptual color space for image processing", 2020.
    """
    value = rgb / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_lms = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.cbrt(linear @ np.transpose(to_lms)) @ np.transpose(to_lab)


def _palette() -> np.ndarray:
    levels = np.linspace(0, 255, 16).round()
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    candidates = candidates[np.abs(_oklab(candidates)[:, 0] - 0.7) < 0.2]
    places = _oklab(candidates)
    colors = np.full((256, 3), 128, np.uint8)
    distance = np.linalg.norm(places - _oklab(colors[IGNORED:]), axis=1)
    for label in range(IGNORED):
        farthest = distance.argmax()
        colors[label] = candidates[farthest]
        distance = np.minimum(distance, np.linalg.norm(places - places[farthest], axis=1))
    return colors


PALETTE = _palette()
"""The color of each label of 8 bits, uint8 [256, 3], RGB; that of `IGNORED` is gray.

Each color is the one farthest from the gray and from all colors before it, among those neither dark nor pale: the first
few differ most (Glasbey et al., "Colour displays for categorical images", 2007).
"""


def colorize(labels: np.ndarray) -> np.ndarray:
    """Returns the colors of labels: integers [H, W] from 0 -> uint8 [H, W, 3].

    Labels of more than 8 bits, of models with more than 255 classes, repeat the colors.
    """
    return PALETTE[labels if labels.dtype == np.uint8 else labels % IGNORED]


def overlay(image: np.ndarray, labels: np.ndarray, opacity: float = 0.55) -> np.ndarray:
    """Lays the colors of labels over an image.

    Args:
        image: uint8 [H, W, 3], RGB.
        labels: integers [H, W] from 0.
        opacity: of the colors, from 0 to 1.

    Returns:
        uint8 [H, W, 3].
    """
    mixed = image + np.float32(opacity) * (colorize(labels).astype(np.float32) - image)
    return mixed.round().astype(np.uint8)
