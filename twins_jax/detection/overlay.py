"""Boxes and masks of objects, drawn over an image."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from twins_jax.errors import shown
from twins_jax.segmentation.palette import colorize

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

OPACITY = 0.4
"""Of a mask's color inside of its outline."""

MAX_NAME = 30
"""Characters of a class's name in the picture."""

Rectangle = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; the last two are the first ones outside of it."""


def overlay_objects(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    masks: np.ndarray | None,
    class_names: Sequence[str] | None,
) -> "Image.Image":
    """Draws objects as `visualize.detection_overlay` says, with its arguments as arrays of the right shapes."""
    from PIL import Image, ImageDraw  # late: `import twins_jax` does not wait for it

    height, width = image.shape[:2]
    best_first = range(len(boxes)) if scores is None else np.argsort(-scores, kind="stable").tolist()
    colors = colorize(labels[None])[0]
    pixels = image.copy()
    if masks is not None:
        for i in reversed(best_first):
            _lay_mask(pixels, masks[i], colors[i])
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    line = max(1, round(max(height, width) / (320 if masks is None else 640)))  # thin beside masks' outlines
    rectangles = [_pixels_of(box, height, width) for box in boxes]
    for i in reversed(best_first):
        left, top, right, bottom = rectangles[i]
        if left < right and top < bottom:
            draw.rectangle((left, top, right - 1, bottom - 1), outline=tuple(colors[i].tolist()), width=line)
    _write_captions(draw, (width, height), rectangles, colors, _captions(labels, scores, class_names), best_first)
    return picture


def _lay_mask(pixels: np.ndarray, mask: np.ndarray, color: np.ndarray) -> None:
    """Mixes a color into the pixels of a mask, [H, W], in place, and outlines it with the color."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    inside, region = mask[window], pixels[window]
    region[inside] = (region[inside] + np.float32(OPACITY) * (color.astype(np.float32) - region[inside])).round()
    around = np.pad(inside, 1)
    has_all_neighbors = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    region[inside & ~has_all_neighbors] = color


def _pixels_of(box: np.ndarray, height: int, width: int) -> Rectangle:
    """Returns the pixels that a box touches, of those of the image; none for a box outside of it."""
    left, top = np.floor(np.clip(box[:2], 0, (width, height)))
    right, bottom = np.ceil(np.clip(box[2:], 0, (width, height)))
    return int(left), int(top), int(right), int(bottom)


def _captions(labels: np.ndarray, scores: np.ndarray | None, class_names: Sequence[str] | None) -> list[str]:
    names = [""] * len(labels) if class_names is None else [shown(class_names[label], MAX_NAME) for label in labels]
    percent = [""] * len(labels) if scores is None else [f"{score:.0%}" for score in scores]
    return [" ".join(filter(None, pair)) for pair in zip(names, percent, strict=True)]


def _write_captions(
    draw: "ImageDraw.ImageDraw",
    size: tuple[int, int],
    rectangles: Sequence[Rectangle],
    colors: np.ndarray,
    captions: Sequence[str],
    order: Sequence[int],
) -> None:
    """Writes each caption above its box, in it or below it.

    A caption that would cover an earlier one, or more than a tenth of another object, is left out.
    """
    from PIL import ImageFont

    font = ImageFont.load_default(max(10, round(max(size) / 50)))
    above, below = draw.textbbox((0, 0), "Ag", font=font)[1::2]  # one height for all
    taken: list[Rectangle] = []
    for i in order:
        left, top, right, bottom = rectangles[i]
        if left >= right or top >= bottom or not captions[i]:
            continue
        wide, high = round(draw.textlength(captions[i], font=font)) + 4, round(below - above) + 4
        x = max(0, min(left, size[0] - wide))
        places = [(x, y, x + wide, y + high) for y in (top - high, top, bottom) if 0 <= y <= size[1] - high]
        others = [other for other in rectangles if other != rectangles[i]]

        def is_free(place: Rectangle, others: Sequence[Rectangle] = others) -> bool:
            hides = any(10 * _common(place, other) > _common(other, other) for other in others)
            return not hides and not any(_common(place, other) for other in taken)

        place = next(filter(is_free, places), None)
        if place is None:
            continue
        taken.append(place)
        color = colors[i].tolist()
        is_light = np.dot(color, (0.299, 0.587, 0.114)) > 140
        draw.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=tuple(color))
        draw.text((x + 2, place[1] + 2 - above), captions[i], fill="black" if is_light else "white", font=font)


def _common(a: Rectangle, b: Rectangle) -> int:
    """Returns the number of pixels that are in both rectangles."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
