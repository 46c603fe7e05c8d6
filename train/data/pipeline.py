"""Input pipelines that every task shares: from a source and its transforms to batches.

Whole batches are the unit of work of threads and worker processes. Neither number changes the batches.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import jax

from ..config import DataConfig
from .damaged import CountedBatches, readable
from .planned import PlannedBatch, PlannedBatches, consecutive
from .workers import WorkersDataset

Transforms = Sequence[grain.transforms.Map | grain.transforms.RandomMap]


def train_batches(
    source: Any,
    transforms: Transforms,
    config: DataConfig,
    batch_size: int,
    *,
    seed: int,
    repeats: int = 1,
    shard: int = 0,
    shards: int = 1,
) -> grain.IterDataset:
    """Makes an endless data set of batches: dicts of arrays with the examples along the first axis.

    Every epoch visits each example once, in an order and with augmentations of its own. A batch may span two epochs:
    none is short, and no example is dropped. All of it follows from `seed`. Its iterators have `get_state` and
    `set_state`, which stand before the next batch; close() ends the worker processes.

    With `repeats` = k an example comes k times in a row, each time with other augmentations, and an epoch is k times as
    long. A batch then has B / k examples of k views, as over all devices in DeiT and in timm's RepeatAugSampler (Hoffer
    et al. 2020). Theirs ends an epoch after the usual number of views, that is with a k-th of the examples, and starts
    anew with all of them; here the next examples follow, and none waits longer than others.

    Args:
        source: records by index.
        transforms: from a record to one example, a dict of arrays.
        config: threads and worker processes.
        batch_size: examples in a batch of this shard.
        seed: decides order and augmentations.
        repeats: views of each example.
        shard: number of the part to read: every shards-th example of the one stream that `seed` gives, from example
            number `shard` on. Views of one example go to different shards.
        shards: number of parts, one for each process of the run.

    With `data.on_error` = skip the next record of the source that can be read takes the place of one that cannot, with
    its own label; the iterators have the number of those examples as `skipped`, and in their state.

    Raises:
        InputError: while iterating, if a record cannot be read, or more than `data.max_errors` of them, or worker
            processes cannot go on.
    """
    examples = len(source) * repeats
    if config.on_error == "skip":
        source, transforms = readable(source, transforms)
    dataset = grain.MapDataset.source(source).seed(seed).shuffle()
    if repeats > 1:
        # Mixing a data set with itself takes element 0 of each copy, then element 1 of each, and onward.
        dataset = grain.MapDataset.mix([dataset] * repeats)
    # The endless stream is dealt out, not the epoch: no example is dropped where the shards do not divide it.
    dataset = dataset.apply(transforms).repeat()[shard::shards]

    def batch_bytes() -> int:
        return batch_size * sum(array.nbytes for array in jax.tree.leaves(dataset[0]))

    batches = _read(dataset.batch(batch_size, drop_remainder=True), batch_bytes, config)
    return CountedBatches(batches, math.ceil(examples / shards), config.max_errors)


def eval_batches(
    source: Any,
    transforms: Transforms,
    config: DataConfig,
    batch_size: int,
    *,
    plan: Sequence[PlannedBatch] | None = None,
    fill: Mapping[str, int] | None = None,
    shard: int = 0,
    shards: int = 1,
) -> grain.IterDataset:
    """Makes a data set of a split, each example once, as batches of a static number of rows.

    A batch has a "mask", bool [B], beside the arrays of the examples; it is False on the rows of padding that fill a
    batch. All shards have the same number of batches, and the k-th batches of all have the same shapes: processes that
    read one shard each can take part in every step.

    With `data.on_error` = skip the mask is False on the row of a record that cannot be read, too.

    Args:
        source: records by index.
        transforms: from a record to one example, a dict of arrays.
        config: threads and worker processes.
        batch_size: rows in a batch of this shard.
        plan: the batches of all shards; None: of examples of one shape, in order.
        fill: the value of padding, by name; 0 for names that it lacks.
        shard: number of the part to read: every shards-th example of each batch, from number `shard` on.
        shards: number of parts.

    Raises:
        InputError: while iterating, if a record cannot be read, or more than `data.max_errors` of them, or worker
            processes cannot go on.
    """
    examples = len(source)
    if config.on_error == "skip":
        source, transforms = readable(source, transforms)
    dataset = grain.MapDataset.source(source).apply(transforms)
    plan = consecutive(examples, batch_size * shards) if plan is None else plan
    batches = PlannedBatches(dataset, plan, batch_size, fill or {}, shard=shard, shards=shards)
    counted = _read(batches, batches.batch_bytes, config)
    return CountedBatches(counted, math.ceil(examples / shards), config.max_errors)


def _read(batches: grain.MapDataset, batch_bytes: Callable[[], int], config: DataConfig) -> grain.IterDataset:
    # A buffer of one batch for each thread keeps them all busy.
    dataset = batches.to_iter_dataset(grain.ReadOptions(config.threads, prefetch_buffer_size=config.threads))
    return WorkersDataset(dataset, config.workers, batch_bytes) if config.workers and len(batches) else dataset
