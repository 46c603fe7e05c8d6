"""Opens the data set that a `DataConfig` names."""

from typing import Literal

from twins_jax.errors import InputError
from twins_jax.extra import check_installed
from twins_jax.paths import source_path

from ..config import HUGGING_FACE, DataConfig
from ..task import DatasetInfo
from .digits import DigitsSource
from .folder import FolderSource
from .metadata import MetadataSource
from .records import Labeled, Source


def dataset_info(train: Labeled, evaluation: Labeled) -> DatasetInfo:
    """Returns the classes and the sizes of both splits."""
    return DatasetInfo(len(train.class_names), train.class_names, len(train), len(evaluation))


def open_source(
    config: DataConfig, split: Literal["train", "eval"], *, multi_label: bool = False, label_column: str = ""
) -> Source:
    """Opens one split of a data set that is in place, or that `datasets` downloads.

    "eval" is the split "validation" of a TFDS data set, or "test" where it has none, and val/ or test/ of a folder.

    Args:
        config: names the data set.
        split: to open.
        multi_label: of a folder or of Hugging Face: an image has any number of labels.
        label_column: of Hugging Face: the column of the labels; empty: found by its type.

    Raises:
        InputError: The data set is not there or not usable; the message says what to do.
    """
    if config.source == "folder":
        kind = MetadataSource if multi_label else FolderSource
        return kind(source_path("data.dir", config.dir), train=split == "train")
    if config.source.startswith(HUGGING_FACE):
        check_installed("datasets", purpose=f"data.source {config.source}", extra="hf")
        from .hugging_face import HuggingFaceSource  # slow to import, and of an extra of its own

        name = config.source.removeprefix(HUGGING_FACE)
        return HuggingFaceSource(name, config.dir, split, label_column=label_column, multi_label=multi_label)
    if config.source == "digits":
        return DigitsSource(train=split == "train")
    try:
        from .tfds import TfdsSource  # slow to import, and not whole on systems without array_record

        return TfdsSource(config, split)
    except ModuleNotFoundError as error:
        raise InputError(
            f"data.source: {config.source} is read by tensorflow_datasets, and {error.name} is not installed; "
            "install it, or the extra `train`; or use 'digits', 'folder' or 'hf:NAME'"
        ) from error
