"""The batches of classification, as its task makes them."""

import dataclasses

import grain

from train.recipes import digits
from train.tasks.classification.config import ClassificationDataConfig
from train.tasks.classification.task import ClassificationTask


def make_task(data: ClassificationDataConfig, seed: int = 0) -> ClassificationTask:
    return dataclasses.replace(digits(), data=data, seed=seed).make_task()


def train_batches(
    data: ClassificationDataConfig, batch_size: int, *, seed: int = 0, shard: int = 0, shards: int = 1
) -> grain.IterDataset:
    return make_task(data, seed).batches("train", batch_size, shard=shard, shards=shards)


def eval_batches(
    data: ClassificationDataConfig, batch_size: int, *, shard: int = 0, shards: int = 1
) -> grain.IterDataset:
    return make_task(data).batches("eval", batch_size, shard=shard, shards=shards)
