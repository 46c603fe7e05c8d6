"""TFDS data sets that are prepared as array_record, which is read without TensorFlow."""

from typing import Literal

import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from twins_jax.errors import InputError, did_you_mean, one_line
from twins_jax.paths import source_path

from ..config import DataConfig
from .records import Record, check_label


class TfdsSource:
    """One split of a prepared data set that has the features "image" (Image) and "label" (ClassLabel).

    Raises:
        InputError: The data set is not prepared, its files allow no random access, or a feature or split is missing.
    """

    def __init__(self, config: DataConfig, split: Literal["train", "eval"]):
        builder = _prepared_builder(config)
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
        name = f"{self._name}[{index}]"
        try:
            features = self._records[index]
        except IndexError:
            raise
        except Exception as error:  # array_record raises RuntimeError, and protobuf its own kinds
            raise InputError(f"{name}: cannot be read: {one_line(error)}") from error
        image, label = features["image"], features["label"]
        if image is None or label is None:  # a file that was cut gives empty records
            raise InputError(f"{name}: is empty")
        return {"image": image, "label": check_label(name, label, len(self.class_names)), "name": name}


def _prepared_builder(config: DataConfig) -> tfds.core.DatasetBuilder:
    folder = source_path("data.dir", config.dir) if config.dir else None
    if folder and not folder.is_dir():
        raise InputError(f"data.dir={config.dir!r}: must be an existing folder, of TFDS data sets")
    # Not tfds.builder: on a set that is not on disk it goes on to the generation code and the network.
    try:
        return read_only_builder.builder_from_files(config.source, data_dir=folder)
    except tfds.core.DatasetNotFoundError as error:
        place = config.dir or "TFDS's default folder"
        is_imagenet = config.source.partition(":")[0] == "imagenet2012"
        train = __package__.rpartition(".")[0]
        command = (
            f"python -m {train}.prepare imagenet2012 --tars DIR --data_dir DIR"
            if is_imagenet
            else f"tfds build {config.source} --file_format=array_record --data_dir=DIR"
        )
        raise InputError(
            f"data.source: {config.source} is not prepared in {place} (data.dir); prepare it with `{command}`, "
            f"or use 'digits', 'folder' or 'hf:NAME'{did_you_mean(config.source, ('digits', 'folder'))}"
        ) from error
    except Exception as error:  # impossible names, damaged descriptions and closed folders raise kinds of their own
        place = config.dir or "TFDS's default folder"
        raise InputError(f"data.source: {config.source!r} in {place} cannot be read: {one_line(error)}") from error
