"""The settings of classification; `python -m train.main --help` shows them with their defaults."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import jax

from twins_jax.config import MIN_IMAGE_SIZE, variant_config
from twins_jax.errors import require

from ...config import HUGGING_FACE, DataConfig, OptimConfig, RunConfig
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
    """digits, folder, hf:NAME of Hugging Face, or the name of a TFDS data set. Also "hf:NAME:CONFIG", and "hf:/PATH" of
    a folder of theirs. TFDS sets are prepared before: "imagenet2012", "imagenet2012:5.1.0"."""

    dir: str = ""
    """Root of train/ and val/ or test/; of hf and TFDS their cache. Empty: their default. digits: none."""

    label_column: str = ""
    """hf: column of the labels. Empty: the only one of type ClassLabel, or "label"."""

    multi_label: bool = False
    """folder, hf: images have any number of labels. folder: train/metadata.jsonl or .csv lists them by image."""

    image_size: int = 224
    """Height and width of the images given to the model, in pixels."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Training: smallest and largest share of the image that is cropped."""

    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Training: smallest and largest width / height of the random crop, before it is resized to a square."""

    flip: float = 0.5
    """Training: probability of a horizontal flip."""

    rand_augment_layers: int = 0
    """Training: operations of RandAugment for an image; 0: none. Each is applied half the time; the papers use 2."""

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
        sources = f"'digits', 'folder', '{HUGGING_FACE}NAME' or the name of a TFDS data set"
        of_hugging_face = self.source.startswith(HUGGING_FACE)
        can_be_multi = self.source == "folder" or of_hugging_face
        for field, ok, allowed in (
            ("source", self.source not in ("", HUGGING_FACE), sources),
            ("dir", is_complete, "the root of train/ and val/ or test/ for source 'folder'"),
            ("label_column", not self.label_column or of_hugging_face, f"empty but for source '{HUGGING_FACE}NAME'"),
            ("multi_label", not self.multi_label or can_be_multi, f"False but for 'folder' and '{HUGGING_FACE}NAME'"),
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
    """Peak learning rate for a batch of 512. It is scaled by batch_size / 512."""

    warmup_learning_rate: float = 1e-6
    """Learning rate of the first step of the warm-up; not scaled."""

    min_learning_rate: float = 1e-5
    """Learning rate at the end; not scaled."""

    warmup_epochs: float = 5.0
    """Length of the warm-up; cut to end before the run does."""

    weight_decay: float = 0.05
    """Decoupled weight decay. Biases, norms and the PEG have none."""

    clip_norm: float = 5.0
    """Largest global norm of the gradients; inf: no clipping."""

    layer_decay: float = 1.0
    """Factor on the learning rate from each block to the one before; 1: none. For fine-tuning."""

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
    """Mixup's alpha; 0: no mixup. Both parameters of the Beta distribution of its weight; the recipe has 0.8."""

    cutmix_alpha: float = 0.0
    """Cutmix's alpha; 0: no cutmix. Both parameters of the Beta distribution of the area that is kept; the recipe has
    1."""

    switch_probability: float = 0.5
    """Probability of cutmix where both are on; mixup otherwise."""

    probability: float = 1.0
    """Probability that a batch is mixed at all."""

    erase_probability: float = 0.0
    """Probability that a rectangle of an image becomes noise. The recipe has 0.25."""

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
    advanced = (
        *RunConfig.advanced,
        *("data.label_column", "data.crop_ratio", "data.eval_crop", "data.repeated_augmentation"),
        *("data.rand_augment_magnitude", "data.rand_augment_std"),
        *("optim.warmup_learning_rate", "optim.min_learning_rate", "mix.switch_probability", "mix.probability"),
    )

    data: ClassificationDataConfig
    optim: ClassificationOptimConfig
    mix: MixConfig = dataclasses.field(default_factory=MixConfig)

    loss: Literal["auto", "cross_entropy", "bce"] = "auto"
    """auto: bce with `data.multi_label`, else cross_entropy. bce: the mean over the classes of each one's binary
    cross-entropy."""

    label_smoothing: float = 0.1
    """Share of each target that is spread over all classes. With `data.multi_label`: over yes and no."""

    init: str = ""
    """Checkpoint to start from. Anything that `twins_jax.from_pretrained` takes; the head is replaced where the number
    of classes differs."""

    report: bool = False
    """Write WORKDIR/report at the end. A confusion matrix and a page of misclassified images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        smoothing = self.label_smoothing
        require("label_smoothing", smoothing, 0 <= smoothing < 1, "a share in [0, 1)")
        is_multi = self.data.multi_label
        require("loss", self.loss, not is_multi or self.loss != "cross_entropy", "auto or bce with data.multi_label")
        require("report", self.report, not (is_multi and self.report), "False with data.multi_label: it has no report")

    def make_task(self, info: "DatasetInfo | None" = None) -> "ClassificationTask":
        from .task import ClassificationTask, MultiLabelTask  # late: --help does not wait for the data libraries

        return (MultiLabelTask if self.data.multi_label else ClassificationTask)(self, info)
