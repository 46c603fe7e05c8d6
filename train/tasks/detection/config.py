"""The settings of detection; `python -m train.main detect_folder --help` shows them with their defaults."""

import dataclasses
import itertools
from typing import TYPE_CHECKING, Literal

import jax

from twins_jax.config import MIN_IMAGE_SIZE
from twins_jax.errors import require

from ...config import MODEL_DEFAULTS, DataConfig, OptimConfig, RunConfig
from .optim import step_schedule

if TYPE_CHECKING:
    import optax

    from ...task import DatasetInfo
    from .task import DetectionTask

MAX_SIDE = 2**14
"""Bound of an image's side: float32 holds coordinates up to it to a 500th of a pixel."""

MAX_BOXES = 2**12
"""Bound of `max_boxes`, each of which is compared with every anchor, and of `box_samples`."""


@dataclasses.dataclass(frozen=True)
class DetectionDataConfig(DataConfig):
    """The data set, its preprocessing and the reading resources.

    Raises:
        InputError: a field is out of range; the message names it as `data.FIELD`.
    """

    source: str = "folder"
    """folder, with images/{train,val}/* and annotations/{train,val}.json in COCO's format; or coco, COCO 2017 as
    released, with {train,val}2017/ and annotations/instances_{train,val}2017.json."""

    dir: str = ""
    """Root of the data set."""

    shorter: int = 800
    """Images are resized to the largest size whose shorter side is at most this, in pixels."""

    longer: int = 1333
    """And whose longer side is at most this."""

    flip: float = 0.5
    """Training: probability of a horizontal flip."""

    multi_scale: bool = False
    """Training: draw the shorter side from 0.6 to 1 times `shorter`, for half of the images after a random crop, as the
    published 3x schedules."""

    max_boxes: int = 100
    """Training: boxes of an image that are learned, the first in the file. Others count as background. COCO's images
    have 93 at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sides = f"an integer from {MIN_IMAGE_SIZE} to {MAX_SIDE}"
        for field, ok, allowed in (
            ("source", self.source in ("folder", "coco"), "folder or coco"),
            ("dir", bool(self.dir), "the folder of the data set"),
            ("shorter", MIN_IMAGE_SIZE <= self.shorter <= MAX_SIDE, sides),
            (
                "longer",
                self.shorter <= self.longer <= MAX_SIDE,
                f"an integer from {self.shorter}, shorter, to {MAX_SIDE}",
            ),
            ("flip", 0 <= self.flip <= 1, "a number in [0, 1]"),
            ("max_boxes", 1 <= self.max_boxes <= MAX_BOXES, f"an integer from 1 to {MAX_BOXES}"),
        ):
            require(f"data.{field}", getattr(self, field), ok, allowed)


@dataclasses.dataclass(frozen=True)
class DetectionOptimConfig(OptimConfig):
    """AdamW with a learning rate that falls in steps, and a linear warm-up.

    Raises:
        InputError: a field is out of range; the message names it as `optim.FIELD`.
    """

    learning_rate: float = 1e-4
    """Learning rate before decay and warm-up; not scaled by the batch size."""

    weight_decay: float = 1e-4
    """Decoupled weight decay, of every parameter."""

    decay_at: tuple[float, ...] = (8 / 12, 11 / 12)
    """Shares of the run after which the learning rate falls: after epochs 8 and 11 of 12."""

    decay_factor: float = 0.1
    """Factor on the learning rate each time."""

    warmup_steps: int = 500
    """Length of the linear warm-up, beneath which the decay runs; cut to end before the run does."""

    warmup_ratio: float = 0.001
    """Factor on the learning rate at the first step of the warm-up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = (0.0, *self.decay_at, 1.0)
        is_rising = all(low < high for low, high in itertools.pairwise(shares))
        for field, ok, allowed in (
            ("decay_at", is_rising, "rising shares between 0 and 1"),
            ("decay_factor", 0 < self.decay_factor <= 1, "a factor in (0, 1]"),
            ("warmup_steps", self.warmup_steps >= 0, "an integer from 0"),
            ("warmup_ratio", 0 <= self.warmup_ratio <= 1, "a factor in [0, 1]"),
        ):
            require(f"optim.{field}", getattr(self, field), ok, allowed)

    def make_schedule(self, *, batch_size: int, total_steps: int, train_examples: int) -> "optax.Schedule":
        """Makes the learning rate by step; see `step_schedule`."""
        del batch_size, train_examples
        return step_schedule(
            self.learning_rate,
            boundaries=[round(share * total_steps) for share in self.decay_at],
            factor=self.decay_factor,
            warmup_steps=min(self.warmup_steps, total_steps - 1),
            warmup_ratio=self.warmup_ratio,
        )

    def decays(self, path: str, leaf: jax.Array) -> bool:
        del path, leaf
        return True


@dataclasses.dataclass(frozen=True)
class DetectionConfig(RunConfig):
    """A training run of a detector. The same config on the same devices gives the same run."""

    model_defaults = MODEL_DEFAULTS | {"window_padding": "zero"}
    advanced = (
        *RunConfig.advanced,
        *("group_size", "box_samples", "data.max_boxes", "optim.decay_at", "optim.decay_factor", "optim.warmup_ratio"),
    )

    data: DetectionDataConfig
    optim: DetectionOptimConfig

    head: Literal["retinanet", "mask_rcnn"] = "retinanet"
    """The heads on the backbone. mask_rcnn needs masks in the data."""

    group_size: int = 2
    """Images whose losses are divided by one count, that of their anchors or boxes: of a GPU in the reference. The
    loss of a batch is the mean over its groups."""

    box_samples: int = 512
    """Mask R-CNN: boxes sampled of each image for the box head to learn from. The mask head learns from the positive
    ones, a quarter of them at most. Fewer take less time and memory."""

    init: str = ""
    """Checkpoint to start from. A detector with the same head gives all weights but those of layers of other classes,
    anything else that `twins_jax.backbone_from_pretrained` takes, such as a classifier, the backbone. The rest is
    fresh. With `eval_only`: a detector's, to be evaluated whole."""

    report: bool = False
    """Write WORKDIR/report at the end. AP by class, and a page of the worst false positives and misses."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require("group_size", self.group_size, self.group_size >= 1, "an integer from 1")
        is_count = 4 <= self.box_samples <= MAX_BOXES  # of fewer none could be positive
        require("box_samples", self.box_samples, is_count, f"an integer from 4 to {MAX_BOXES}")
        parts = self.optim.accumulate
        is_multiple = self.eval_only or self.batch_size // parts % self.group_size == 0
        allowed = f"a multiple of group_size x optim.accumulate, {self.group_size} x {parts}"
        require("batch_size", self.batch_size, is_multiple, allowed)

    def make_task(self, info: "DatasetInfo | None" = None) -> "DetectionTask":
        from .task import DetectionTask  # late: --help does not wait for the data libraries

        return DetectionTask(self, info)
