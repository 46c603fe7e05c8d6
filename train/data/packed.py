"""Paths of millions of files, in little memory."""

import os
from collections.abc import Sequence

import numpy as np


class PackedPaths:
    """A sequence of paths, kept as one bytes object with the end of each.

    As Python's objects, millions of them would take hundreds of megabytes, in each worker process too.

    Args:
        paths: as `os.fsencode` encodes them.
    """

    def __init__(self, paths: Sequence[bytes]) -> None:
        self._bytes = b"".join(paths)
        self._ends = np.cumsum([0, *map(len, paths)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        begin, end = self._ends[index], self._ends[index + 1]
        return os.fsdecode(self._bytes[begin:end])
