"""The models of this library under one name, for the functions that take any of them."""

from typing import TypeAlias

from twins_jax.backbone import TwinsBackbone
from twins_jax.classifier import TwinsClassifier
from twins_jax.detection.detector import TwinsDetector
from twins_jax.errors import require
from twins_jax.segmentation.segmenter import TwinsSegmenter

Model: TypeAlias = TwinsClassifier | TwinsSegmenter | TwinsDetector | TwinsBackbone
"""A model of this library."""


def check_model(model: object) -> None:
    """Raises InputError unless a value is a `Model`."""
    allowed = "a TwinsClassifier, a TwinsSegmenter, a TwinsDetector or a TwinsBackbone"
    require("model", type(model), isinstance(model, Model), allowed)
