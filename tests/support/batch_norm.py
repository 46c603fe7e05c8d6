"""A task whose model has a BatchNorm: its running statistics pass through the whole training system."""

import dataclasses
from typing import Any

import jax
from flax import nnx

from train.recipes import digits
from train.task import DatasetInfo
from train.tasks.classification.config import ClassificationConfig
from train.tasks.classification.task import ClassificationTask
from twins_jax.layers import BatchNorm, Linear, PatchConv


class Normed(nnx.Module):
    """Images [B, 32, 32, 3] -> logits [B, classes]: patches, BatchNorm, ReLU, mean, linear."""

    def __init__(self, classes: int, *, rngs: nnx.Rngs) -> None:
        self.embed = PatchConv(3, 8, 8, rngs=rngs)
        self.bn = BatchNorm(8)
        self.head = Linear(8, classes, rngs=rngs)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = nnx.relu(self.bn(self.embed(images), training=rngs is not None))
        return self.head(x.mean(axis=(1, 2)))


class NormedTask(ClassificationTask):
    def create_model(self, rngs: nnx.Rngs) -> Any:
        return Normed(self.info.num_classes, rngs=rngs)


class NormedConfig(ClassificationConfig):
    def make_task(self, info: DatasetInfo | None = None) -> NormedTask:
        return NormedTask(self, info)


def config(**changes: Any) -> NormedConfig:
    """The digits recipe with `Normed`, in a short run."""
    base = digits()
    fields = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    short = {"batch_size": 16, "eval_batch_size": 96, "steps": 6, "eval_every_steps": 3, "log_every_steps": 1}
    return NormedConfig(**(fields | short | changes))
