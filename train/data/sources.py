"""Opens the data set that a `DataConfig` names."""

import dataclasses
from pathlib import Path
from typing import Literal

import platformdirs
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from twins_jax.errors import InputError

from ..config import DataConfig
from .digits import prepare_digits
from .folder import FolderSource
from .records import Record, Source


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What the model and the schedule need to know about a data set."""

    num_classes: int
    class_names: tuple[str, ...]
    train_examples: int
    eval_examples: int


def dataset_info(config: DataConfig) -> DatasetInfo:
    """Returns the classes and the sizes of both splits.

    Raises:
        InputError: As `open_source`.
    """
    train, evaluation = open_source(config, "train"), open_source(config, "eval")
    return DatasetInfo(len(train.class_names), train.class_names, len(train), len(evaluation))


def open_source(config: DataConfig, split: Literal["train", "eval"]) -> Source:
    """Opens one split; digits are prepared on first use, everything else must be in place.

    "eval" is the split "validation" of a TFDS data set, or "test" where it has none, and val/ or test/ of a folder.

    Raises:
        InputError: The data set is not there or not usable; the message says what to do.
    """
    if config.source == "folder":
        return FolderSource(Path(config.dir).expanduser(), train=split == "train")
    if config.source == "digits":
        cache_dir = Path(config.dir).expanduser() if config.dir else platformdirs.user_cache_path("twins_jax")
        return TfdsSource(tfds.builder_from_directory(str(prepare_digits(cache_dir))), split)
    return TfdsSource(_prepared_builder(config), split)


class TfdsSource:
    """One split of a prepared TFDS data set that has the features "image" (Image) and "label" (ClassLabel).

    Raises:
        InputError: The files allow no random access, or a feature or split is missing.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: Literal["train", "eval"]):
        info = builder.info
        formats = sorted(file_format.value for file_format in info.available_file_formats())
        if "array_record" not in formats:
            raise InputError(
                f"data.source: {info.full_name} in {builder.data_dir} is stored as {', '.join(formats)}; random access "
                "needs array_record: prepare it with `tfds build --file_format=array_record`"
            )
        features = dict(info.features)
        image, label = features.get("image"), features.get("label")
        if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
            raise InputError(
                f"data.source: {info.full_name} has the features {', '.join(sorted(features))}; "
                "'image' (Image) and 'label' (ClassLabel) are needed"
            )
        names = ("train",) if split == "train" else ("validation", "test")
        found = [name for name in names if name in info.splits]
        if not found:
            raise InputError(
                f"data.source: {info.full_name} has the splits {', '.join(info.splits)}; {' or '.join(names)} is needed"
            )
        self.class_names = tuple(label.names)
        self._name = f"{info.full_name} {found[0]}"
        # The encoded file: decoding is a transform of ours, the same for all sources.
        self._records = builder.as_data_source(
            found[0], decoders={"image": tfds.decode.SkipDecoding()}, file_format="array_record"
        )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        features = self._records[index]
        name, label = f"{self._name}[{index}]", int(features["label"])
        if label < 0:  # how TFDS stores the labels of a test set that are not public
            raise InputError(f"{name}: has no label")
        return {"image": features["image"], "label": label, "name": name}


def _prepared_builder(config: DataConfig) -> tfds.core.DatasetBuilder:
    # Not tfds.builder: on a set that is not on disk it goes on to the generation code and the network.
    try:
        return read_only_builder.builder_from_files(config.source, data_dir=config.dir or None)
    except tfds.core.DatasetNotFoundError as error:
        place = config.dir or "TFDS's default folder"
        is_imagenet = config.source.partition(":")[0] == "imagenet2012"
        command = (
            "python -m train.prepare imagenet2012 --tars DIR --data_dir DIR"
            if is_imagenet
            else f"tfds build {config.source} --file_format=array_record --data_dir=DIR"
        )
        raise InputError(
            f"data.source: {config.source} is not prepared in {place} (data.dir); prepare it with `{command}`, "
            "or use 'digits' or 'folder'"
        ) from error
    except ValueError as error:
        raise InputError(f"data.source: {config.source!r}: {str(error).splitlines()[0]}") from error
