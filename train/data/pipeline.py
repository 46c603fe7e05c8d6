"""Input pipelines for image classification.

Whole batches are the unit of work of threads and worker processes, so neither number changes what a batch holds.
"""

import functools
from collections.abc import Sequence

import grain
import numpy as np
from absl import flags

from ..tasks.classification.transforms import eval_transforms, train_transforms
from .config import DataConfig
from .sources import open_source


def train_batches(
    config: DataConfig, batch_size: int, seed: int, *, shard: int = 0, shards: int = 1
) -> grain.IterDataset:
    """Returns an endless data set of batches {"image": uint8 [B, S, S, 3], "label": int32 [B]}.

    Every epoch visits each example once, in an order and with augmentations of its own; a batch may span two epochs,
    so none is short and no example is dropped. All of it follows from `seed`. Its iterators have `get_state` and
    `set_state`, which stand before the next batch; close() ends the worker processes.

    With `repeated_augmentation` = k an example comes k times in a row, each time with other augmentations, and an
    epoch is k times as long. So a batch has B / k examples of k views, as over all devices in DeiT and in timm's
    RepeatAugSampler (Hoffer et al. 2020). Theirs ends an epoch after the usual number of views, that is with a k-th
    of the examples, and starts anew with all of them; here the next examples follow, so none waits longer than others.

    Args:
        config: What to read.
        batch_size: Examples in a batch of this shard.
        seed: Decides order and augmentations.
        shard: Which of `shards` parts to read: every shards-th example of the one stream that `seed` gives, from
            example number `shard` on. So views of one example go to different shards.
        shards: Number of parts, one for each process of the run.

    Raises:
        InputError: As `open_source`; while iterating, if an image cannot be read.
    """
    dataset = grain.MapDataset.source(open_source(config, "train")).seed(seed).shuffle()
    if config.repeated_augmentation > 1:
        # Mixing a data set with itself takes element 0 of each copy, then element 1 of each, and so on.
        dataset = grain.MapDataset.mix([dataset] * config.repeated_augmentation)
    # The endless stream is dealt out, not the epoch: so no example is dropped where the shards do not divide it.
    dataset = dataset.apply(train_transforms(config)).repeat()[shard::shards]
    return _read(dataset.batch(batch_size, drop_remainder=True), config)


def eval_batches(config: DataConfig, batch_size: int, *, shard: int = 0, shards: int = 1) -> grain.IterDataset:
    """Returns the evaluation split in order, each example once, as batches of one static size.

    A batch is {"image": uint8 [B, S, S, 3], "label": int32 [B], "mask": bool [B]}; the mask is False on the rows of
    zeros that fill the last batch. Of several shards each reads every shards-th example, from number `shard` on; when
    the numbers do not divide, some shards have a batch less than others, or none.

    Raises:
        InputError: As `open_source`; while iterating, if an image cannot be read.
    """
    dataset = grain.MapDataset.source(open_source(config, "eval")).apply(eval_transforms(config))[shard::shards]
    dataset = dataset.batch(batch_size, batch_fn=functools.partial(_padded_batch, batch_size=batch_size))
    return _read(dataset, config)


def _padded_batch(examples: Sequence[dict[str, np.ndarray]], batch_size: int) -> dict[str, np.ndarray]:
    rows = batch_size - len(examples)
    batch = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
    batch["mask"] = np.ones(len(examples), bool)
    return {key: np.pad(value, [(0, rows)] + [(0, 0)] * (value.ndim - 1)) for key, value in batch.items()}


def _read(dataset: grain.MapDataset, config: DataConfig) -> grain.IterDataset:
    # A buffer of one batch for each thread keeps them all busy.
    batches = dataset.to_iter_dataset(grain.ReadOptions(config.threads, prefetch_buffer_size=config.threads))
    if config.workers:
        # Grain reads absl flags when it starts processes, and only a main that uses absl has parsed them.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(config.workers))
    return batches
