"""The form in which every source hands out its examples."""

from typing import Protocol, TypedDict

import numpy as np

from twins_jax.errors import InputError

SKIPPED = "skipped"
"""Name of the flag, bool [], of an example that stands for a damaged one; transforms hand it on where it is."""


class Record(TypedDict):
    """One example as it is stored."""

    image: bytes
    """An encoded image file, of a format that `decode` reads."""

    label: int | np.ndarray
    """Index into the source's `class_names`; of a multi-label source bool [classes], True at each of its labels."""

    name: str
    """The record's file or place, for error messages."""


class Labeled(Protocol):
    """The facts about a split that no record tells."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; the position is the label."""

    def __len__(self) -> int: ...


class Source(Labeled, Protocol):
    """A split with random access. It can be pickled, since worker processes read from a copy."""

    def __getitem__(self, index: int) -> Record: ...


def check_label(name: str, label: int | None, num_classes: int) -> int:
    """Returns a label that a library stores.

    Args:
        name: of the record, for errors.
        label: None or -1 where it is missing or not public, as those of test sets.
        num_classes: of the data set.

    Raises:
        InputError: the label is missing, or not of a class.
    """
    if label is None or label == -1:
        raise InputError(f"{name}: has no label")
    if not 0 <= label < num_classes:
        raise InputError(f"{name}: has the label {label}; must be from 0 to {num_classes - 1}")
    return int(label)
