"""Examples that cannot be read, under `data.on_error=skip`: another takes the place of each, and they are counted."""

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from twins_jax.errors import InputError

from .records import SKIPPED, Source
from .workers import position

MAX_IN_A_ROW = 100
"""Damaged records one after the other that are passed over: more of them are no accident."""


class ReadableSource:
    """A source with its decoding, in which the next record that can be read takes the place of one that cannot.

    The last record is followed by the first. A warning names each damaged record.

    Args:
        source: records by index.
        transforms: from a record to an example, without randomness; those that may fail.

    Raises:
        InputError: on access, if `MAX_IN_A_ROW` records cannot be read.
    """

    def __init__(self, source: Source, transforms: Sequence[grain.transforms.Map]):
        self._source = source
        self._transforms = transforms

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns the example with `SKIPPED`, bool []: True if it stands for another."""
        tries = min(MAX_IN_A_ROW, len(self))
        for offset in range(tries):
            try:
                element: Any = self._source[(index + offset) % len(self)]
                for transform in self._transforms:
                    element = transform.map(element)
            except InputError as error:
                warnings.warn(f"{error}; skipped (data.on_error)", stacklevel=2)
                last = error
            else:
                return {**element, SKIPPED: np.bool_(offset > 0)}
        raise InputError(f"data.on_error=skip: {tries} examples in a row cannot be read, the last: {last}") from last


def readable(source: Source, transforms: Sequence[Any]) -> tuple[ReadableSource, Sequence[Any]]:
    """Moves the transforms before the first random one, which decode, into a source; returns it and the others.

    The random ones need the random state of their place in the pipeline, and no damaged record gets as far.
    """
    fixed = list(itertools.takewhile(lambda transform: isinstance(transform, grain.transforms.Map), transforms))
    return ReadableSource(source, fixed), transforms[len(fixed) :]


class CountedBatches(grain.IterDataset):
    """The batches of `parent` without `SKIPPED`, which it counts.

    Args:
        parent: batches; with `SKIPPED`, bool [B], where damaged examples are replaced.
        examples: in a pass over the data.
        max_errors: largest share of damaged examples.
    """

    def __init__(self, parent: grain.IterDataset, examples: int, max_errors: float):
        super().__init__(parent)
        self._batches = parent
        self._examples = examples
        self._max_errors = max_errors

    def __iter__(self) -> "CountedIterator":
        return CountedIterator(iter(self._batches), self._examples, self._max_errors)


class CountedIterator(grain.DatasetIterator):
    """Counts the damaged examples of all batches since the start of the run: the state holds the count.

    Raises:
        InputError: on `next`, if they are more than the allowed share of the examples of all passes begun.
    """

    def __init__(self, batches: grain.DatasetIterator, examples: int, max_errors: float):
        super().__init__(batches)
        self._batches = batches
        self._examples = examples
        self._max_errors = max_errors
        self._read = 0
        self.skipped = 0

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._batches)
        if (flags := batch.pop(SKIPPED, None)) is not None:
            self._read += int((batch["mask"] | flags).sum()) if "mask" in batch else len(flags)
            self.skipped += int(flags.sum())
            begun = math.ceil(self._read / self._examples) * self._examples
            if self.skipped / begun > self._max_errors:
                raise InputError(
                    f"data.max_errors={self._max_errors}: {self.skipped} damaged examples in {begun}; must be at most "
                    "that share of the passes begun"
                )
        return batch

    def get_state(self) -> dict[str, Any]:
        return {**self._batches.get_state(), "read": self._read, SKIPPED: self.skipped}

    def set_state(self, state: dict[str, Any]) -> None:
        # A state from before `data.on_error` has no counts; in a run of several processes all get those of process 0.
        batches = dict(state)
        self._read, self.skipped = batches.pop("read", 0), batches.pop(SKIPPED, 0)
        self._batches.set_state(position(batches))
