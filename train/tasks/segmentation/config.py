"""The settings of segmentation; `python -m train.main segment_folder --help` shows them with their defaults."""

import dataclasses
import math
from typing import TYPE_CHECKING, Literal

import jax

from twins_jax.config import MIN_IMAGE_SIZE
from twins_jax.errors import require
from twins_jax.segmentation.segmenter import SegmentationHead

from ...config import MODEL_DEFAULTS, DataConfig, OptimConfig, RunConfig
from .optim import decays, poly_schedule

if TYPE_CHECKING:
    import optax

    from ...task import DatasetInfo
    from .task import SegmentationTask

MAX_SIDE = 2**14
"""Bound of an image's side, of which the pixels are still counted in int32."""


@dataclasses.dataclass(frozen=True)
class SegmentationDataConfig(DataConfig):
    """The data set, its preprocessing and the reading resources.

    Raises:
        InputError: a field is out of range; the message names it as `data.FIELD`.
    """

    source: str = "folder"
    """folder, with images/{train,val}/*, masks/{train,val}/*.png and classes.json; or ade20k, as released:
    ADEChallengeData2016 with images/ and annotations/."""

    dir: str = ""
    """Root of the data set."""

    crop_size: int = 512
    """Training: height and width of the crops, in pixels."""

    shorter: int = 512
    """Images are resized to the largest size whose shorter side is at most this, in pixels."""

    longer: int = 2048
    """And whose longer side is at most this."""

    scale: tuple[float, float] = (0.5, 2.0)
    """Training: smallest and largest factor on both, drawn for each image."""

    cat_max_ratio: float = 0.75
    """Training: largest share of one class in a crop. Crops with more are drawn anew, ten times at most."""

    flip: float = 0.5
    """Training: probability of a horizontal flip."""

    photometric: bool = True
    """Training: distort brightness, contrast, saturation and hue."""

    eval_scales: tuple[float, ...] = (1.0,)
    """Evaluation: factors on both sizes. The probabilities of several are averaged."""

    eval_flip: bool = False
    """Evaluation: average with the mirrored image."""

    eval_mode: Literal["whole", "slide"] = "whole"
    """Evaluation: whole images, or windows of `crop_size`, whose logits are averaged."""

    eval_stride: int = 341
    """slide: pixels from window to window."""

    eval_multiple: int = 1
    """Evaluation: images are padded at right and bottom to multiples of this. A program is compiled for each size;
    larger multiples make fewer, 1 is the reference's evaluation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sides = f"an integer from {MIN_IMAGE_SIZE} to {MAX_SIDE}"
        scale, scales = self.scale, self.eval_scales
        leaves_no_gap = 1 <= self.eval_stride <= (self.crop_size if self.eval_mode == "slide" else MAX_SIDE)
        for field, ok, allowed in (
            ("source", self.source in ("folder", "ade20k"), "folder or ade20k"),
            ("dir", bool(self.dir), "the folder of the data set"),
            ("crop_size", MIN_IMAGE_SIZE <= self.crop_size <= MAX_SIDE, sides),
            ("shorter", MIN_IMAGE_SIZE <= self.shorter <= MAX_SIDE, sides),
            (
                "longer",
                self.shorter <= self.longer <= MAX_SIDE,
                f"an integer from {self.shorter}, shorter, to {MAX_SIDE}",
            ),
            ("scale", 0 < scale[0] <= scale[1] <= 10, "two rising factors in (0, 10]"),
            ("cat_max_ratio", 0 < self.cat_max_ratio <= 1, "a share in (0, 1]"),
            ("flip", 0 <= self.flip <= 1, "a number in [0, 1]"),
            ("eval_scales", bool(scales) and all(0 < s <= 10 for s in scales), "one or more factors in (0, 10]"),
            ("eval_stride", leaves_no_gap, f"an integer from 1 to crop_size, {self.crop_size}"),
            ("eval_multiple", 1 <= self.eval_multiple <= MAX_SIDE, f"an integer from 1 to {MAX_SIDE}"),
        ):
            require(f"data.{field}", getattr(self, field), ok, allowed)


@dataclasses.dataclass(frozen=True)
class SegmentationOptimConfig(OptimConfig):
    """AdamW with a polynomial decay, and a linear warm-up.

    Raises:
        InputError: a field is out of range; the message names it as `optim.FIELD`.
    """

    learning_rate: float = 6e-5
    """Learning rate before decay and warm-up; not scaled by the batch size."""

    min_learning_rate: float = 0.0
    """Learning rate at the end."""

    power: float = 1.0
    """Of the decay: (1 - step / steps) to this power. 1: linear."""

    warmup_steps: int = 1500
    """Length of the linear warm-up, beneath which the decay runs; cut to end before the run does."""

    warmup_ratio: float = 1e-6
    """Factor on the learning rate at the first step of the warm-up."""

    weight_decay: float = 0.01
    """Decoupled weight decay."""

    decay: Literal["all", "no_norm"] = "no_norm"
    """Parameters that decay. no_norm: all but the backbone's norms and its PEG, as upstream's UPerNet."""

    def __post_init__(self) -> None:
        super().__post_init__()
        least = self.min_learning_rate
        for field, ok, allowed in (
            ("min_learning_rate", 0 <= least <= self.learning_rate, f"from 0 to learning_rate, {self.learning_rate}"),
            ("power", 0 < self.power < math.inf, "a positive number"),
            ("warmup_steps", self.warmup_steps >= 0, "an integer from 0"),
            ("warmup_ratio", 0 <= self.warmup_ratio <= 1, "a factor in [0, 1]"),
        ):
            require(f"optim.{field}", getattr(self, field), ok, allowed)

    def make_schedule(self, *, batch_size: int, total_steps: int, train_examples: int) -> "optax.Schedule":
        """Makes the learning rate by step; see `poly_schedule`."""
        del batch_size, train_examples
        return poly_schedule(
            self.learning_rate,
            end_value=self.min_learning_rate,
            power=self.power,
            total_steps=total_steps,
            warmup_steps=min(self.warmup_steps, total_steps - 1),
            warmup_ratio=self.warmup_ratio,
        )

    def decays(self, path: str, leaf: jax.Array) -> bool:
        del leaf
        return self.decay == "all" or decays(path)


@dataclasses.dataclass(frozen=True)
class SegmentationConfig(RunConfig):
    """A training run of a segmenter. The same config on the same devices gives the same run."""

    model_defaults = MODEL_DEFAULTS | {"window_padding": "mask"}
    advanced = (
        *RunConfig.advanced,
        *("data.cat_max_ratio", "data.eval_mode", "data.eval_stride", "auxiliary_weight"),
        *("optim.min_learning_rate", "optim.power", "optim.warmup_ratio", "optim.decay"),
    )

    data: SegmentationDataConfig
    optim: SegmentationOptimConfig

    head: SegmentationHead = "upernet"
    """The head on the backbone."""

    auxiliary_weight: float = 0.4
    """upernet: weight of the auxiliary head's loss."""

    init: str = ""
    """Checkpoint to start from. A segmenter with the same head gives all weights but those of layers of other classes,
    anything else that `twins_jax.backbone_from_pretrained` takes, such as a classifier, the backbone. The rest is
    fresh. With `eval_only`: a segmenter's, to be evaluated whole."""

    report: bool = False
    """Write WORKDIR/report at the end. IoU by class, and a page of the images that are segmented worst."""

    def __post_init__(self) -> None:
        super().__post_init__()
        weight, rows = self.auxiliary_weight, self.batch_size // self.optim.accumulate
        require("auxiliary_weight", weight, 0 <= weight < math.inf, "a number from 0")
        can_norm = self.head != "upernet" or self.eval_only or rows > 1
        allowed = "at least 2 x optim.accumulate: UPerNet's BatchNorm of one position has no variance"
        require("batch_size", self.batch_size, can_norm, allowed)

    def make_task(self, info: "DatasetInfo | None" = None) -> "SegmentationTask":
        from .task import SegmentationTask  # late: --help does not wait for the data libraries

        return SegmentationTask(self, info)
