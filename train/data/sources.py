"""Opens the data set that a `DataConfig` names."""

from typing import Literal

from twins_jax.errors import InputError
from twins_jax.paths import source_path

from ..config import DataConfig
from ..task import DatasetInfo
from .digits import DigitsSource
from .folder import FolderSource
from .records import Source


def dataset_info(train: Source, evaluation: Source) -> DatasetInfo:
    """Returns the classes and the sizes of both splits."""
    return DatasetInfo(len(train.class_names), train.class_names, len(train), len(evaluation))


def open_source(config: DataConfig, split: Literal["train", "eval"]) -> Source:
    """Opens one split of a data set that is in place.

    "eval" is the split "validation" of a TFDS data set, or "test" where it has none, and val/ or test/ of a folder.

    Raises:
        InputError: The data set is not there or not usable; the message says what to do.
    """
    if config.source == "folder":
        return FolderSource(source_path("data.dir", config.dir), train=split == "train")
    if config.source == "digits":
        return DigitsSource(train=split == "train")
    try:
        from .tfds import TfdsSource  # slow to import, and not whole on systems without array_record

        return TfdsSource(config, split)
    except ModuleNotFoundError as error:
        raise InputError(
            f"data.source: {config.source} is read by tensorflow_datasets, and {error.name} is not installed; "
            "install it, or the extra `train`; or use 'digits' or 'folder'"
        ) from error
