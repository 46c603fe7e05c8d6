"""What to read and how to augment it."""

import dataclasses

from twins_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data set, its preprocessing and the reading resources.

    Raises:
        InputError: A field is out of range; the message names it as `data.FIELD`.
    """

    source: str = "digits"
    """"digits", "folder", or the name of a prepared TFDS data set such as "imagenet2012" or "imagenet2012:5.1.0"."""

    dir: str = ""
    """folder: the root that holds train/ and val/ or test/. TFDS: its data_dir (empty: TFDS's own default).
    digits: nothing; they come with scikit-learn."""

    image_size: int = 224
    """Height and width of the images given to the model, in pixels."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Training: smallest and largest area of the random crop, as fractions of the image's area."""

    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Training: smallest and largest width / height of the random crop, before it is resized to a square."""

    flip: float = 0.5
    """Training: probability of a horizontal flip."""

    rand_augment_layers: int = 0
    """Training: how many operations of RandAugment are drawn for an image, each of which is applied half the time
    (0: RandAugment is off; the papers use 2)."""

    rand_augment_magnitude: float = 9.0
    """Training: mean strength of RandAugment's operations, 0 to 10."""

    rand_augment_std: float = 0.5
    """Training: standard deviation of that strength from operation to operation."""

    repeated_augmentation: int = 1
    """Training: how many times in a row an example is read, each time with augmentations of its own."""

    eval_crop: float = 0.875
    """Evaluation: side of the centre crop / shorter side of the resized image."""

    threads: int = 8
    """Threads that build batches, in each reading process; each holds one batch in memory."""

    workers: int = 0
    """Worker processes that build batches; 0 reads in the training process."""

    def __post_init__(self) -> None:
        def check(field: str, ok: bool, allowed: str) -> None:
            if not ok:
                raise InputError(f"data.{field}: {getattr(self, field)!r}; it must be {allowed}")

        scale, ratio = self.crop_scale, self.crop_ratio
        check("source", bool(self.source), "'digits', 'folder' or the name of a TFDS data set")
        check(
            "dir", self.source != "folder" or bool(self.dir), "the root of train/ and val/ or test/ for source 'folder'"
        )
        check("image_size", self.image_size >= 1, "at least 1")
        check("crop_scale", 0 < scale[0] <= scale[1] <= 1, "two rising fractions above 0, up to 1")
        check("crop_ratio", 0 < ratio[0] <= ratio[1] < float("inf"), "two rising numbers above 0")
        check("flip", 0 <= self.flip <= 1, "from 0 to 1")
        check("rand_augment_layers", self.rand_augment_layers >= 0, "at least 0")
        check("rand_augment_magnitude", 0 <= self.rand_augment_magnitude <= 10, "from 0 to 10")
        check("rand_augment_std", 0 <= self.rand_augment_std < float("inf"), "a number that is at least 0")
        check("repeated_augmentation", self.repeated_augmentation >= 1, "at least 1")
        check("eval_crop", 0 < self.eval_crop <= 1, "above 0, up to 1")
        check("threads", self.threads >= 1, "at least 1")
        check("workers", self.workers >= 0, "at least 0")
