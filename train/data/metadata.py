"""A data set whose images have any number of labels, which a file of the split's folder lists."""

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from twins_jax.decode import read_image
from twins_jax.errors import InputError, did_you_mean, shown
from twins_jax.files import parse_object, read_text

from .folder import contents, eval_dir
from .packed import PackedPaths
from .records import Record

FILES = ("metadata.jsonl", "metadata.csv")
"""The names that Hugging Face's `imagefolder` gives to them."""

SEPARATOR = "|"
"""Between the labels of an image in a CSV file."""

Rows = dict[str, frozenset[str]]
"""The labels of each image, by its path from the folder of the split."""


class MetadataSource:
    """The images of one split: those that `ROOT/train/metadata.jsonl` lists, or the one in val/ or test/.

    A line is {"file_name": "a/1.jpg", "labels": ["cat", "dog"]}, with the path from the file's own folder; a list may
    be empty. A `metadata.csv` in its place has the columns file_name and labels, "cat|dog". Classes are the sorted
    labels of train's file, for both splits. The order is that of the file; other images are not read.

    Raises:
        InputError: a file is missing or not what it must be, or evaluation has a label that train has not.
    """

    def __init__(self, root: str | Path, *, train: bool):
        train_dir = Path(root) / "train"
        self._dir = train_dir if train else eval_dir(Path(root))
        train_rows = _read(train_dir)
        rows = train_rows if train else _read(self._dir)
        self.class_names = tuple(sorted(frozenset().union(*train_rows.values())))
        if not self.class_names:
            raise InputError(f"{train_dir}: no image has a label")
        positions = {name: position for position, name in enumerate(self.class_names)}
        labels: list[int] = []
        ends = [0]
        for file_name, names in rows.items():
            if unknown := sorted(names - positions.keys()):
                raise InputError(
                    f"{self._dir}: {shown(file_name)} has the label {shown(unknown[0])!r}, which no image of "
                    f"{train_dir} has{did_you_mean(unknown[0], self.class_names)}"
                )
            labels += sorted(positions[name] for name in names)
            ends.append(len(labels))
        self._files = PackedPaths([os.fsencode(file_name) for file_name in rows])
        self._labels = np.asarray(labels, np.int32)
        self._label_ends = np.asarray(ends, np.int64)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Record:
        path = self._dir / self._files[index]
        label = np.zeros(len(self.class_names), bool)
        label[self._labels[self._label_ends[index] : self._label_ends[index + 1]]] = True
        return {"image": read_image(path), "label": label, "name": str(path)}


def _read(folder: Path) -> Rows:
    found = [folder / name for name in FILES if (folder / name).is_file()]
    if not found:
        raise InputError(f"{folder}: must hold {' or '.join(FILES)} for data.multi_label; {contents(folder)}")
    if len(found) > 1:
        raise InputError(f"{folder}: holds {' and '.join(FILES)}; must hold one of them")
    (path,) = found
    text = read_text(path)
    rows: Rows = {}
    for number, file_name, labels in _jsonl(path, text) if path.suffix == ".jsonl" else _csv(path, text):
        if not isinstance(file_name, str) or not _is_name(file_name):
            raise InputError(f"{path}, line {number}: file_name must be the path of an image")
        if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
            raise InputError(f"{path}, line {number}: labels must be a list of names")
        if file_name in rows:
            raise InputError(f"{path}, line {number}: {shown(file_name)} stands twice; all its labels go on one line")
        rows[file_name] = frozenset(labels)
    if not rows:
        raise InputError(f"{path}: lists no image")
    return rows


def _is_name(file_name: str) -> bool:
    try:
        os.fsencode(file_name)
    except UnicodeEncodeError:  # half of a character
        return False
    return bool(file_name) and "\0" not in file_name


def _jsonl(path: Path, text: str) -> Iterator[tuple[int, Any, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            row = parse_object(line, f"{path}, line {number}")
            yield number, row.get("file_name"), row.get("labels")


def _csv(path: Path, text: str) -> Iterator[tuple[int, Any, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)  # or a quote left open takes all that follows
    try:
        columns = reader.fieldnames or ()
        if not columns.count("file_name") == columns.count("labels") == 1:
            raise InputError(f"{path}: must have the columns file_name and labels; has {', '.join(columns) or 'none'}")
        for row in reader:
            if None in row or row["labels"] is None:  # "a.jpg,cat,dog" would lose the dog
                raise InputError(
                    f"{path}, line {reader.line_num}: must have {len(columns)} cells, as the first line; labels are "
                    f"separated by {SEPARATOR!r}"
                )
            names = row["labels"].split(SEPARATOR)
            yield reader.line_num, row["file_name"], [name.strip() for name in names if name.strip()]
    except csv.Error as error:
        first = reader.line_num + 1  # of the row; the reader still counts the lines of the one before
        raise InputError(f"{path}, line {first}: {error}") from error
