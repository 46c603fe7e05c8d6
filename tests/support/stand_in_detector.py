"""A detector that finds colored rectangles by their colors, in place of one that would have to be trained."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.support.models import NANO, random_module
from twins_jax import DetectionPreprocessing
from twins_jax.detection.detector import Detections, TwinsDetector

SCORES = (0.4, 0.9, 0.7)
"""Of red, green and blue rectangles."""


class ColorDetector(TwinsDetector):
    """Finds at most one rectangle of each color; its mask is the left half. With `head` "retinanet" it has none.

    A fourth object of class 0 and score 1 is padding that is not zero. The places of objects that are not there hold
    what no answer may have.
    """

    head = "mask_rcnn"

    def features(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> tuple[jax.Array, ...]:
        del rngs
        return (images + 0 * self.backbone.stages[0].patch_embed.norm.bias[0],)

    def detections(self, features: tuple[jax.Array, ...], sizes: jax.Array) -> Detections:
        found = jax.vmap(self._of_image)(features[0], sizes)
        return found._replace(masks=None) if self.head == "retinanet" else found

    def _of_image(self, image: jax.Array, size: jax.Array) -> Detections:
        height, width, _ = image.shape
        is_padding = (jnp.arange(height)[:, None] >= size[0]) | (jnp.arange(width) >= size[1])
        others = (image.sum(axis=-1, keepdims=True) - image) / 2
        is_color = (image - others > 1) & ~is_padding[..., None]
        is_there = jnp.concatenate([is_color, (is_padding & (image != 0).any(axis=-1))[..., None]], axis=-1)
        rows, columns = is_there.any(axis=1), is_there.any(axis=0)
        first = jnp.stack([columns.argmax(axis=0), rows.argmax(axis=0)], axis=1)
        last = jnp.stack([width - columns[::-1].argmax(axis=0), height - rows[::-1].argmax(axis=0)], axis=1)
        best_first = np.array([3, 1, 2, 0])
        valid = rows.any(axis=0)[best_first]
        boxes = jnp.concatenate([first, last], axis=1).astype(jnp.float32)[best_first]
        scores, labels = np.array([*SCORES, 1], np.float32)[best_first], np.array([0, 1, 2, 0], np.int32)[best_first]
        order = jnp.argsort(~valid, stable=True)
        masks = jnp.zeros((4, 28, 28)).at[:, :, :14].set(1)
        return Detections(boxes[order], jnp.asarray(scores)[order], jnp.asarray(labels)[order], valid[order], masks)


class ColorBoxDetector(ColorDetector):
    """The same without masks."""

    head = "retinanet"


def color_detector(kind: type[ColorDetector] = ColorDetector) -> ColorDetector:
    model = random_module(lambda: kind(NANO, 3, rngs=nnx.Rngs(0)))
    model.preprocessing = DetectionPreprocessing(128, 192, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    return model


RECTANGLES = np.array([[8, 6, 40, 21], [30, 50, 44, 80], [6, 31, 24, 60]], np.float32)
"""The boxes in `photograph(90, 53)` of red, green and blue."""


def photograph(height: int, width: int, colors: str = "rgb") -> np.ndarray:
    """A gray image with a rectangle of each of the colors, uint8 [H, W, 3].

    They are at `RECTANGLES` in an image of 90 x 53 pixels, and at the same shares of others.
    """
    pixels = np.random.default_rng(0).integers(90, 140, (height, width, 1), np.uint8).repeat(3, axis=2)
    for name, box in zip("rgb", RECTANGLES, strict=True):
        left, top, right, bottom = (box * ([width / 53, height / 90] * 2)).round().astype(int)
        if name in colors:
            pixels[top:bottom, left:right] = np.where(np.array(list("rgb")) == name, 250, 10)
    return pixels
