"""The detectors by the names of their heads."""

from typing import get_args

from flax import nnx

from twins_jax.config import TwinsConfig
from twins_jax.detection.detector import DetectionHead
from twins_jax.detection.mask_rcnn import TwinsMaskRCNN
from twins_jax.detection.retinanet import TwinsRetinaNet
from twins_jax.errors import require

DETECTORS: dict[str, type[TwinsRetinaNet] | type[TwinsMaskRCNN]] = {
    "retinanet": TwinsRetinaNet,
    "mask_rcnn": TwinsMaskRCNN,
}


def make_detector(
    config: TwinsConfig, head: DetectionHead, num_classes: int, *, rngs: nnx.Rngs
) -> TwinsRetinaNet | TwinsMaskRCNN:
    """Creates a detector with random initial weights; see `TwinsDetector`.

    Raises:
        InputError: (a ValueError) naming the argument, its value and what it must be.
    """
    allowed = f"one of {', '.join(DETECTORS)}"
    require("head", head, isinstance(head, str) and head in get_args(DetectionHead), allowed)
    return DETECTORS[head](config, num_classes, rngs=rngs)
