"""The settings of classification; `python -m train.main --help` shows them with their defaults."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax

from twins_jax.config import MIN_IMAGE_SIZE, variant_config
from twins_jax.errors import require

from ...config import DataConfig, OptimConfig, RunConfig
from ...validation import check_types
from .optim import decays, layer_scale

if TYPE_CHECKING:
    import optax

    from ...task import DatasetInfo
    from .task import ClassificationTask


MAX_IMAGE_SIZE = 2**14
"""Bound of an image's side, of which the pixels are still counted in int32."""


@dataclasses.dataclass(frozen=True)
class ClassificationDataConfig(DataConfig):
    """The data set, its preprocessing and the reading resources.

    Raises:
        InputError: a field is out of range; the message names it as `data.FIELD`.
    """

    source: str = "digits"
    """"digits", "folder", or the name of a prepared TFDS data set such as "imagenet2012" or "imagenet2012:5.1.0"."""

    dir: str = ""
    """folder: the root that holds train/ and val/ or test/. TFDS: its data_dir (empty: TFDS's own default).
    digits: none, they are in memory."""

    image_size: int = 224
    """Height and width of the images given to the model, in pixels."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Training: smallest and largest area of the random crop, as fractions of the image's area."""

    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Training: smallest and largest width / height of the random crop, before it is resized to a square."""

    flip: float = 0.5
    """Training: probability of a horizontal flip."""

    rand_augment_layers: int = 0
    """Training: operations of RandAugment drawn for an image, each of which is applied half the time (0: RandAugment is
    off; the papers use 2)."""

    rand_augment_magnitude: float = 9.0
    """Training: mean strength of RandAugment's operations, 0 to 10."""

    rand_augment_std: float = 0.5
    """Training: standard deviation of that strength from operation to operation."""

    repeated_augmentation: int = 1
    """Training: times in a row that an example is read, each time with augmentations of its own."""

    eval_crop: float = 0.875
    """Evaluation: side of the center crop / shorter side of the resized image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        scale, ratio = self.crop_scale, self.crop_ratio
        is_complete = self.source != "folder" or bool(self.dir)
        sizes = f"an integer from {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE}"
        sources = "'digits', 'folder' or the name of a TFDS data set"
        for field, ok, allowed in (
            ("source", bool(self.source), sources),
            ("dir", is_complete, "the root of train/ and val/ or test/ for source 'folder'"),
            ("image_size", MIN_IMAGE_SIZE <= self.image_size <= MAX_IMAGE_SIZE, sizes),
            ("crop_scale", 0 < scale[0] <= scale[1] <= 1, "two rising fractions in (0, 1]"),
            ("crop_ratio", 0 < ratio[0] <= ratio[1] < math.inf, "two rising positive numbers"),
            ("flip", 0 <= self.flip <= 1, "a number in [0, 1]"),
            ("rand_augment_layers", self.rand_augment_layers >= 0, "an integer from 0"),
            ("rand_augment_magnitude", 0 <= self.rand_augment_magnitude <= 10, "a number in [0, 10]"),
            ("rand_augment_std", 0 <= self.rand_augment_std < math.inf, "a number from 0"),
            ("repeated_augmentation", self.repeated_augmentation >= 1, "an integer from 1"),
            ("eval_crop", 0 < self.eval_crop <= 1, "a fraction in (0, 1]"),
        ):
            require(f"data.{field}", getattr(self, field), ok, allowed)


@dataclasses.dataclass(frozen=True)
class ClassificationOptimConfig(OptimConfig):
    """AdamW with a linear warm-up and a cosine decay.

    Raises:
        InputError: a field is out of range; the message names it as `optim.FIELD`.
    """

    learning_rate: float = 5e-4
    """Peak learning rate for a batch of 512; it is scaled by batch_size / 512."""

    warmup_learning_rate: float = 1e-6
    """Learning rate of the first step of the warm-up; not scaled."""

    min_learning_rate: float = 1e-5
    """Learning rate at the end; not scaled."""

    warmup_epochs: float = 5.0
    """Length of the warm-up; cut to end before the run does."""

    weight_decay: float = 0.05
    """Decoupled weight decay of every parameter but biases, norms and the PEG."""

    clip_norm: float = 5.0
    """Largest global norm of the gradients; inf: no clipping."""

    layer_decay: float = 1.0
    """Factor on the learning rate from each block to the one before it, for fine-tuning; 1: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("warmup_learning_rate", "min_learning_rate"):
            require(f"optim.{field}", getattr(self, field), 0 < getattr(self, field) < math.inf, "a positive number")
        epochs = self.warmup_epochs
        require("optim.warmup_epochs", epochs, 0 <= epochs < math.inf, "a number from 0")
        require("optim.layer_decay", self.layer_decay, 0 < self.layer_decay <= 1, "a factor in (0, 1]")

    def warmup_steps(self, *, batch_size: int, total_steps: int, train_examples: int) -> int:
        """Returns the length of the warm-up in steps, less than the run's."""
        return round(min(self.warmup_epochs * train_examples / batch_size, total_steps - 1))

    def make_schedule(self, *, batch_size: int, total_steps: int, train_examples: int) -> "optax.Schedule":
        """Makes the learning rate by step: linear to the peak, then a cosine to the smallest; upstream uses timm's."""
        import optax  # late: reading the settings does not need it

        return optax.warmup_cosine_decay_schedule(
            init_value=self.warmup_learning_rate,
            peak_value=self.learning_rate * batch_size / 512,
            warmup_steps=self.warmup_steps(
                batch_size=batch_size, total_steps=total_steps, train_examples=train_examples
            ),
            decay_steps=total_steps,
            end_value=self.min_learning_rate,
        )

    def decays(self, path: str, leaf: jax.Array) -> bool:
        return decays(path, leaf)

    def update_scales(self, model_name: str) -> Callable[[str], float] | None:
        if self.layer_decay == 1:
            return None
        return functools.partial(layer_scale, decay=self.layer_decay, depths=variant_config(model_name).depths)


@dataclasses.dataclass(frozen=True)
class MixConfig:
    """Mixing and erasing of training images, both off by default.

    Raises:
        InputError: a field is out of range; the message names it as `mix.FIELD`.
    """

    mixup_alpha: float = 0.0
    """Mixup: both parameters of the Beta distribution of its weight (0: no mixup; the paper's recipe has 0.8)."""

    cutmix_alpha: float = 0.0
    """Cutmix: both parameters of the Beta distribution of the area that is kept (0: no cutmix; the recipe has 1)."""

    switch_probability: float = 0.5
    """Probability of cutmix where both are on; mixup otherwise."""

    probability: float = 1.0
    """Probability that a batch is mixed at all."""

    erase_probability: float = 0.0
    """Probability that a rectangle of an image is replaced by noise (0: never; the recipe has 0.25)."""

    def __post_init__(self) -> None:
        check_types(self, "mix.")
        for field, value in vars(self).items():
            if field.endswith("alpha"):
                require(f"mix.{field}", value, 0 <= value < math.inf, "a number from 0")
            else:
                require(f"mix.{field}", value, 0 <= value <= 1, "a number in [0, 1]")


@dataclasses.dataclass(frozen=True)
class ClassificationConfig(RunConfig):
    """A training run of a classifier. The same config on the same devices gives the same run."""

    renamed = {"optim.label_smoothing": "label_smoothing"}  # noqa: RUF012 - as `RunConfig` declares it

    data: ClassificationDataConfig
    optim: ClassificationOptimConfig
    mix: MixConfig = dataclasses.field(default_factory=MixConfig)

    label_smoothing: float = 0.1
    """Share of each target that is spread over all classes."""

    init: str = ""
    """Checkpoint to start from: anything `twins_jax.from_pretrained` takes. The head is replaced where the number of
    classes differs."""

    report: bool = False
    """After the last evaluation write WORKDIR/report: a confusion matrix and a page of misclassified images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        smoothing = self.label_smoothing
        require("label_smoothing", smoothing, 0 <= smoothing < 1, "a share in [0, 1)")

    def make_task(self, info: "DatasetInfo | None" = None) -> "ClassificationTask":
        from .task import ClassificationTask  # late: --help does not wait for the data libraries

        return ClassificationTask(self, info)
