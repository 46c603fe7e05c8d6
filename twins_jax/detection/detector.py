"""The frame that RetinaNet and Mask R-CNN share."""

import abc
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from twins_jax.backbone import TwinsBackbone
from twins_jax.base import AnsweringModel
from twins_jax.config import TwinsConfig, TwinsOptions, check_config, variant_config
from twins_jax.detection.preprocess import DetectionPreprocessing
from twins_jax.errors import MAX_INT, is_integer, require
from twins_jax.inputs import as_array, check_images

DetectionHead = Literal["retinanet", "mask_rcnn"]

MAX_DETECTIONS = 100
"""Boxes of an image in an answer (upstream's `test_cfg`, `max_per_img`)."""

SCORE_THRESHOLD = 0.05
"""Boxes of lower scores are no answers (upstream's `test_cfg`, `score_thr`)."""

NMS_THRESHOLD = 0.5
"""IoU above which a box suppresses those of its class with lower scores (upstream's `test_cfg`, `iou_thr`)."""


class Detections(NamedTuple):
    """The boxes found in a batch of images, N places for each image, in order of score.

    Attributes:
        boxes: float32 [B, N, 4], x1, y1, x2, y2 in pixels of the network's input; 0 where not valid.
        scores: float32 [B, N], from 0 to 1; 0 where not valid.
        labels: int32 [B, N], indices of classes; 0 where not valid.
        valid: bool [B, N], False in the places that are left over; they come last.
        masks: float32 [B, N, 28, 28], probabilities on a grid over each box, of the class that `labels` says; None for
            RetinaNet.
    """

    boxes: jax.Array
    scores: jax.Array
    labels: jax.Array
    valid: jax.Array
    masks: jax.Array | None = None


class TwinsDetector(AnsweringModel[DetectionPreprocessing]):
    """A backbone, a feature pyramid and heads that find objects: `TwinsRetinaNet` or `TwinsMaskRCNN`.

    Args:
        config: the backbone's configuration.
        num_classes: kinds of objects.
        rngs: `params` stream for the initial parameters.

    Raises:
        InputError: (a ValueError) naming the argument, its value and what it must be.
    """

    head: ClassVar[DetectionHead]
    preprocessing_type = DetectionPreprocessing

    def __init__(self, config: TwinsConfig, num_classes: int, *, rngs: nnx.Rngs) -> None:
        check_config(config)
        is_count = is_integer(num_classes, 1)
        require("num_classes", num_classes, is_count, f"an integer from 1 to {MAX_INT}")
        self.config = config
        self.num_classes = int(num_classes)
        self.class_names, self.preprocessing = None, None
        self.backbone = TwinsBackbone(config, rngs=rngs)

    def __call__(
        self, images: jax.Array, sizes: jax.Array | None = None, *, rngs: nnx.Rngs | None = None
    ) -> Detections:
        """Finds objects; the same as `detect`."""
        return self.detect(images, sizes, rngs=rngs)

    def detect(self, images: jax.Array, sizes: jax.Array | None = None, *, rngs: nnx.Rngs | None = None) -> Detections:
        """Finds objects, with upstream's settings for testing.

        Boxes end at the edges of their image, within its padding. Whatever else the padding changes, it changes through
        the attentions and convolutions that read it, as in mmdet.

        Args:
            images: normalized floats [B, H, W, in_channels], H and W at least 32. Images of a batch that are smaller
                have zeros below and at their right.
            sizes: integers [B, 2], height and width of each image within its padding; None: H and W.
            rngs: `dropout` stream; its presence means training. Without it the model is deterministic.

        Returns:
            Up to 100 boxes of each image, best first.

        Raises:
            InputError: (a ValueError) naming what is wrong with an argument.
        """
        images = check_images(images, self.config.in_channels)
        sizes = _check_sizes(sizes, images)
        return self.detections(self.features(images, rngs=rngs), sizes)

    @abc.abstractmethod
    def features(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> tuple[jax.Array, ...]:
        """Computes the feature pyramid.

        Args:
            images: as for `detect`.
            rngs: as for `detect`.

        Returns:
            Maps [B, h, w, 256] in `config.dtype`, fine to coarse.

        Raises:
            InputError: (a ValueError) naming what is wrong with the images.
        """

    @abc.abstractmethod
    def detections(self, features: Sequence[jax.Array], sizes: jax.Array) -> Detections:
        """Finds objects in a feature pyramid, as `features` gives it, of images of these `sizes`, [B, 2]."""


def detector_config(name: str, **options: Unpack[TwinsOptions]) -> TwinsConfig:
    """Returns the configuration of a variant as a detector's backbone: as `variant_config`, with other defaults.

    Upstream's detection pads windows with zeros, and its dense SVT norms the output of every stage.
    """
    own = options.copy()
    own.setdefault("stage_norms", variant_config(name).window_size is not None)
    return variant_config(name, **own)


def map_sizes(outputs: Sequence[tuple[jax.Array, jax.Array]]) -> list[tuple[int, int]]:
    """Returns the heights and widths of the maps that a dense head has put out."""
    return [(deltas.shape[1], deltas.shape[2]) for _, deltas in outputs]


def by_anchor(x: jax.Array, channels: int) -> jax.Array:
    """Splits the channels of a map by anchors: [B, h, w, A * channels] -> [B, h * w * A, channels]."""
    batch, height, width, count = x.shape
    return x.reshape(batch, height * width * count // channels, channels)


def chosen(boxes: jax.Array, scores: jax.Array, labels: jax.Array, indices: jax.Array, valid: jax.Array) -> Detections:
    """Takes one image's detections out of candidates, and zeros where they are not valid.

    Args:
        boxes: [M, 4].
        scores: [M].
        labels: [M].
        indices: [N], of candidates.
        valid: [N].
    """
    scores, labels = (jnp.where(valid, array[indices], 0) for array in (scores, labels))
    return Detections(jnp.where(valid[:, None], boxes[indices], 0), scores, labels, valid)


def _check_sizes(sizes: jax.Array | None, images: jax.Array) -> jax.Array:
    """Returns the sizes of images as an array, or says what is wrong with them."""
    batch, height, width, _ = images.shape
    if sizes is None:
        return jnp.tile(jnp.asarray((height, width), jnp.int32), (batch, 1))
    sizes = as_array("sizes", sizes)
    require("sizes.shape", sizes.shape, sizes.shape == (batch, 2), f"{(batch, 2)}, a height and a width for each image")
    is_right = jnp.issubdtype(sizes.dtype, np.integer)
    require("sizes.dtype", str(sizes.dtype), is_right, "a dtype of integers")
    return sizes
