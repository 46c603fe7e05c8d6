"""The settings of segmentation; `python -m train.main --help` shows them with their defaults."""

import dataclasses
import math
from typing import Literal

from twins_jax.config import MIN_IMAGE_SIZE
from twins_jax.errors import require
from twins_jax.segmentation.preprocess import SegmentationPreprocessing

from ...config import DataConfig

MAX_IMAGE_SIZE = 2**14
"""Bound of an image's side, of which the pixels are still counted in int32."""


@dataclasses.dataclass(frozen=True)
class SegmentationDataConfig(DataConfig):
    """The data set, its preprocessing and the reading resources.

    Raises:
        InputError: a field is out of range; the message names it as `data.FIELD`.
    """

    source: str = "folder"
    """folder, or ade20k: the data set's released layout."""

    dir: str = ""
    """folder: root of images/, masks/ and classes.json. ade20k: ADEChallengeData2016."""

    crop_size: int = 512
    """Training: height and width of the crops, in pixels."""

    shorter: int = 512
    """Largest shorter side of a resized image, in pixels."""

    longer: int = 2048
    """Largest longer side of a resized image, in pixels."""

    scale: tuple[float, float] = (0.5, 2.0)
    """Training: smallest and largest factor on `shorter` and `longer`."""

    cat_max_ratio: float = 0.75
    """Training: share of a crop's labeled pixels that one class stays below, or the crop is drawn again; 1: none is."""

    flip: float = 0.5
    """Training: probability of a horizontal flip."""

    photometric: bool = True
    """Training: brightness, contrast, saturation and hue are changed at random."""

    eval_scales: tuple[float, ...] = (1.0,)
    """Evaluation: factors on `shorter` and `longer`; the probabilities of several are averaged."""

    eval_flip: bool = False
    """Evaluation: the mirrored image is segmented, too, and the probabilities are averaged."""

    eval_mode: Literal["whole", "slide"] = "whole"
    """Evaluation: the network sees the whole image, or windows of `crop_size`."""

    eval_stride: int = 341
    """Evaluation, slide: distance of the windows, in pixels."""

    eval_multiple: int = 1
    """Evaluation: images are padded to a multiple of it, for fewer programs to compile; 1: not padded, as upstream."""

    def __post_init__(self) -> None:
        super().__post_init__()
        SegmentationPreprocessing(self.shorter, self.longer)
        low, high = self.scale
        sizes = f"an integer from {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE}"
        for field, ok, allowed in (
            ("source", self.source in ("folder", "ade20k"), "'folder' or 'ade20k'"),
            ("dir", bool(self.dir), "the folder of the data set"),
            ("crop_size", MIN_IMAGE_SIZE <= self.crop_size <= MAX_IMAGE_SIZE, sizes),
            ("scale", 0 < low <= high < math.inf, "two rising positive numbers"),
            ("cat_max_ratio", 0 < self.cat_max_ratio <= 1, "a share in (0, 1]"),
            ("flip", 0 <= self.flip <= 1, "a number in [0, 1]"),
        ):
            require(f"data.{field}", getattr(self, field), ok, allowed)
