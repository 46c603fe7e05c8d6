"""Batches of an evaluation, planned before any example is read: every process knows their number and their shapes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from twins_jax.errors import InputError

from .records import SKIPPED

Shape = tuple[int, ...]


class PlannedBatch(NamedTuple):
    """A batch over all shards.

    Attributes:
        examples: their indexes, in the order of the batch's rows: at least one, at most as many as rows.
        shapes: of the arrays, by name, that are padded at their ends; the others have one shape in all examples.
    """

    examples: Sequence[int]
    shapes: Mapping[str, Shape] = {}


def consecutive(examples: int, batch_size: int) -> list[PlannedBatch]:
    """Plans batches of examples of one shape, in order."""
    starts = range(0, examples, batch_size)
    return [PlannedBatch(range(start, min(start + batch_size, examples))) for start in starts]


class PlannedBatches(grain.MapDataset):
    """One shard's rows of planned batches: dicts of arrays with the examples along the first axis.

    "mask", bool [B], is False on rows of padding, and on those of examples with `SKIPPED`. The arrays of such rows are
    filled as the padding of the others is.

    Args:
        examples: dicts of arrays.
        plan: of all shards; each shard reads every shards-th example of a batch, from number `shard` on.
        batch_size: rows of a batch in each shard.
        fill: the value of padding, by name; 0 for names that it lacks.
        shard: number of the part, 0 to `shards` - 1.
        shards: number of parts.
    """

    def __init__(
        self,
        examples: grain.MapDataset,
        plan: Sequence[PlannedBatch],
        batch_size: int,
        fill: Mapping[str, int],
        *,
        shard: int,
        shards: int,
    ) -> None:
        super().__init__(examples)
        self._examples = examples
        self._plan = plan
        self._batch_size = batch_size
        self._fill = fill
        self._shard = shard
        self._shards = shards

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        planned = self._plan[index % len(self)]
        own = planned.examples[self._shard :: self._shards]
        rows = [self._examples[i] for i in own]
        like = rows[0] if rows else self._examples[planned.examples[0]]  # a batch of padding alone has its shapes, too
        batch = self._padding(like, planned)
        mask = batch["mask"] = np.zeros(self._batch_size, bool)
        for row, (number, example) in enumerate(zip(own, rows, strict=True)):
            if example.get(SKIPPED, False):
                batch[SKIPPED][row] = True
                continue
            mask[row] = True
            for name, value in example.items():
                _put(batch[name][row : row + 1], np.asarray(value)[None], f"example {number}: {name}")
        return batch

    def batch_bytes(self) -> int:
        """Reads an example, and returns the size of the largest batch."""
        like = self._examples[self._plan[0].examples[0]]
        return max(
            sum(
                self._batch_size * int(np.prod(planned.shapes.get(name, np.shape(value)))) * np.asarray(value).itemsize
                for name, value in like.items()
            )
            for planned in self._plan
        )

    def _padding(self, like: Mapping[str, np.ndarray], planned: PlannedBatch) -> dict[str, np.ndarray]:
        batch = {}
        for name, value in like.items():
            shape = (self._batch_size, *planned.shapes.get(name, np.shape(value)))
            batch[name] = np.full(shape, self._fill.get(name, 0), np.asarray(value).dtype)
        return batch


def _put(place: np.ndarray, value: np.ndarray, what: str) -> None:
    """Puts an array into the beginning of a larger one."""
    fits = place.ndim == value.ndim and all(size <= room for size, room in zip(value.shape, place.shape, strict=True))
    if not fits:
        raise InputError(f"{what} has the shape {value.shape[1:]}, and its batch has room for {place.shape[1:]}")
    place[tuple(map(slice, value.shape))] = value
