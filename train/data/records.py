"""The form in which every source hands out its examples."""

from typing import Protocol, TypedDict

import numpy as np

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


class Source(Protocol):
    """A split with random access. It can be pickled, since worker processes read from a copy."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; the position is the label."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...
