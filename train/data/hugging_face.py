"""Hugging Face image data sets, of the Hub or of a folder, by the library `datasets`."""

import sys
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np

from twins_jax.decode import read_image
from twins_jax.errors import InputError, one_line
from twins_jax.paths import source_path, target_path

from .records import Record, check_label

EVAL_SPLITS = ("validation", "valid", "val", "test")
"""The names of the evaluation split, of which the first that a set has is taken."""


class HuggingFaceSource:
    """One split of a data set with a column of images and one of labels, in the set's order.

    Images are read as they are stored, and not decoded. The library keeps what it downloads or converts in its cache.

    Args:
        name: "OWNER/NAME" or "OWNER/NAME:CONFIG" on the Hub; or the path of a folder, which begins with "/", "." or
            "~": one of `DatasetDict.save_to_disk`, or with files that `datasets.load_dataset` takes (parquet, images).
        cache_dir: of the library; empty: its own default.
        split: "eval" is one of `EVAL_SPLITS`.
        label_column: of the labels; empty: the only one of its type, or "label" of several.
        multi_label: the labels are lists.

    Raises:
        InputError: the set cannot be loaded, or has no such split or column.
    """

    def __init__(
        self, name: str, cache_dir: str, split: Literal["train", "eval"], *, label_column: str, multi_label: bool
    ) -> None:
        splits = _load(name, str(target_path("data.dir", cache_dir, "folder")) if cache_dir else None)
        found = "train" if split == "train" else next((each for each in EVAL_SPLITS if each in splits), None)
        if found is None or "train" not in splits:
            needed = f"train and {' or '.join(EVAL_SPLITS)} are needed"
            raise InputError(f"data.source: {name} has the splits {', '.join(map(str, splits))}; {needed}")
        rows = splits[found]
        self._image, self._label = _columns(name, rows.features, label_column, multi_label)
        label, of_train = (splits[each].features.get(self._label) for each in (found, "train"))
        if label != of_train:
            raise InputError(f"data.source: {name} has other classes in its split {found} than in train")
        self.class_names: tuple[str, ...] = tuple((label.feature if multi_label else label).names)
        self._multi_label = multi_label
        self._name = f"{name} {found}"
        rows = rows.select_columns([self._image, self._label])
        self._rows = rows.cast_column(self._image, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        name = f"{self._name}[{index}]"
        try:
            row = self._rows[index]
        except IndexError:
            raise
        except Exception as error:  # pyarrow's own kinds, of a file that was cut
            raise InputError(f"{name}: cannot be read: {one_line(error)}") from error
        image = row[self._image] or {}
        data, path = image.get("bytes"), image.get("path") or ""
        if data is None and not path:
            raise InputError(f"{name}: has no image")
        return {
            "image": read_image(Path(path)) if data is None else data,
            "label": self._label_of(name, row),
            "name": name,
        }

    def _label_of(self, name: str, row: dict[str, Any]) -> int | np.ndarray:
        label, num_classes = row[self._label], len(self.class_names)
        if not self._multi_label or label is None:
            return check_label(name, label, num_classes)
        multi_hot = np.zeros(num_classes, bool)
        multi_hot[[check_label(name, each, num_classes) for each in label]] = True
        return multi_hot


def _load(name: str, cache_dir: str | None) -> Any:
    """Loads all splits."""
    datasets.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    is_local = name.startswith(("/", ".", "~"))
    folder = source_path("data.source", name) if is_local else None
    if folder and not folder.is_dir():
        raise InputError(f"data.source: {name}: no such folder")
    try:
        if folder and any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
            splits: Any = datasets.load_from_disk(str(folder))
        elif folder:
            splits = datasets.load_dataset(str(folder), cache_dir=cache_dir)
        else:
            repository, _, config = name.partition(":")
            splits = datasets.load_dataset(repository, config or None, cache_dir=cache_dir)
    except Exception as error:  # of the library's own kinds, of the network's and of damaged files
        raise InputError(f"data.source: {name} cannot be loaded: {one_line(error)}") from error
    if not isinstance(splits, dict):
        raise InputError(f"data.source: {name} holds one split; save a DatasetDict with train and validation or test")
    return splits


def _columns(name: str, features: Any, label_column: str, multi_label: bool) -> tuple[str, str]:
    """Chooses the columns of the images and of the labels."""
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    described = ", ".join(f"{column} ({_described(feature)})" for column, feature in features.items())
    if len(images) != 1 and "image" not in images:
        raise InputError(f"data.source: {name} has the columns {described}; one of type Image is needed")
    single = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    several = [column for column, feature in features.items() if _is_list(feature)]
    labels, kind = (several, "List of ClassLabel") if multi_label else (single, "ClassLabel")
    if label_column and label_column not in labels:
        raise InputError(f"data.label_column={label_column!r}: must be a column of type {kind}; {name} has {described}")
    if not labels:
        hint = "; give --data.multi_label for the lists" if several else ""
        raise InputError(f"data.source: {name} has the columns {described}; one of type {kind} is needed{hint}")
    column = label_column or (labels[0] if len(labels) == 1 else "label" if "label" in labels else "")
    if not column:
        raise InputError(f"data.label_column='': must be one of {', '.join(labels)} for {name}")
    return "image" if "image" in images else images[0], column


def _is_list(feature: Any) -> bool:
    return isinstance(getattr(feature, "feature", None), datasets.ClassLabel)


def _described(feature: Any) -> str:
    """Names a type: "ClassLabel", "List of ClassLabel", "string"."""
    inner = getattr(feature, "feature", None)
    kind = getattr(feature, "dtype", None) if isinstance(feature, datasets.Value) else type(feature).__name__
    return f"{kind} of {_described(inner)}" if inner is not None else str(kind)
