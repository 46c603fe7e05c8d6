"""Classification as a task of the training system."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
from flax import nnx

import twins_jax
from twins_jax import TwinsClassifier
from twins_jax.errors import require
from twins_jax.extra import check_installed
from twins_jax.paths import weights_source
from twins_jax.preprocess import DEFAULT, normalize

from ...data.pipeline import eval_batches, train_batches
from ...data.records import Source
from ...data.sources import dataset_info, open_source
from ...task import Batch, DatasetInfo, Evaluator, Split
from .config import ClassificationConfig
from .losses import Loss, binary_cross_entropy, cross_entropy, smooth_multi_hot, smooth_targets
from .metrics import ClassificationEvaluator, MultiLabelEvaluator
from .mixing import mix, random_erase
from .report import ReportEvaluator
from .transforms import eval_transforms, train_transforms


class ClassificationTask:
    """Trains a `TwinsClassifier` on images with one label each; implements `Task`.

    Args:
        config: the run's.
        info: of the data set, to leave its files unread.

    Raises:
        InputError: the data set is not what it must be.
    """

    best_metric: str = "top1"

    def __init__(self, config: ClassificationConfig, info: DatasetInfo | None = None) -> None:
        self._config = config
        self.info = info or dataset_info(self._sources["train"], self._sources["eval"])

    def create_model(self, rngs: nnx.Rngs) -> TwinsClassifier:
        """Creates the classifier with fresh weights, or those of `config.init`.

        Raises:
            InputError: `init` cannot be loaded or is of another variant than `model.name`; or, with `eval_only`, of
                another number of classes, or of images normalized otherwise; or it is of images that are not RGB.
        """
        config, num_classes = self._config, self.info.num_classes
        options: dict[str, Any] = dict(config.model)
        if not config.init:
            return twins_jax.create_model(num_classes=num_classes, rngs=rngs, **options)
        if not config.eval_only:  # a fresh head is of use only to training
            options |= {"num_classes": num_classes, "rngs": rngs}
        model = twins_jax.from_pretrained(weights_source("init", config.init), **options)
        channels = model.config.in_channels
        require("init", config.init, channels == 3, f"of images with 3 channels, as the data: found {channels}")
        allowed = f"of {num_classes} classes, as the data: found {model.num_classes}"
        require("init", config.init, model.num_classes == num_classes, allowed)
        if config.eval_only and (images := model.preprocessing):  # training goes on with the run's own
            is_same = (images.mean, images.std) == (DEFAULT.mean, DEFAULT.std)
            found = f"found mean {images.mean} and std {images.std}"
            require("init", config.init, is_same, f"of images with ImageNet's mean and standard deviation: {found}")
        return model

    def batches(self, split: Split, batch_size: int, *, shard: int = 0, shards: int = 1) -> grain.IterDataset:
        """Reads batches {"image": uint8 [B, S, S, 3], "label": int32 [B]}, and of "eval" a "mask": bool [B]."""
        data = self._config.data
        if split == "eval":
            transforms = eval_transforms(data)
            return eval_batches(self._sources[split], transforms, data, batch_size, shard=shard, shards=shards)
        return train_batches(
            self._sources[split],
            train_transforms(data),
            data,
            batch_size,
            seed=self._config.seed,
            repeats=data.repeated_augmentation,
            shard=shard,
            shards=shards,
        )

    @functools.cached_property
    def _sources(self) -> Mapping[Split, Source]:
        data = self._config.data
        options: dict[str, Any] = {"multi_label": data.multi_label, "label_column": data.label_column}
        return {"train": open_source(data, "train", **options), "eval": open_source(data, "eval", **options)}

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        side = self._config.data.image_size
        return {
            "image": jax.ShapeDtypeStruct((batch_size, side, side, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        }

    def augment(self, batch: Batch, keys: Sequence[jax.Array]) -> Batch:
        """Normalizes, erases and mixes: {"image": float32 [B, S, S, 3], "target": float32 [B, classes]}."""
        config = self._config
        erase_key, mix_key = keys
        images = random_erase(erase_key, normalize(batch["image"]), config.mix.erase_probability)
        targets = self._targets(batch["label"])
        images, targets = mix(mix_key, images, targets, config.mix, config.data.repeated_augmentation)
        return {"image": images, "target": targets}

    def _targets(self, labels: jax.Array) -> jax.Array:
        return smooth_targets(labels, self.info.num_classes, self._config.label_smoothing)

    def loss(self, model: Any, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes the mean of `config.loss`, 0 of no examples."""
        config = self._config
        is_binary = config.loss == "bce" or config.data.multi_label
        loss: Loss = binary_cross_entropy if is_binary else cross_entropy
        losses = loss(model(batch["image"], rngs=rngs), batch["target"])
        return losses.sum() / max(len(losses), 1), {}

    def evaluator(self) -> Evaluator:
        return ClassificationEvaluator()

    def report(self, folder: Path) -> ReportEvaluator:
        return ReportEvaluator(folder, self.info.class_names)


class MultiLabelTask(ClassificationTask):
    """Trains a `TwinsClassifier` on images with any number of labels each: batches have "label": bool [B, classes]."""

    best_metric = "map"

    def __init__(self, config: ClassificationConfig, info: DatasetInfo | None = None) -> None:
        check_installed("sklearn", purpose="evaluating several labels", extra="train")
        super().__init__(config, info)

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        label = jax.ShapeDtypeStruct((batch_size, self.info.num_classes), jnp.bool_)
        return super().batch_shapes(batch_size) | {"label": label}

    def _targets(self, labels: jax.Array) -> jax.Array:
        return smooth_multi_hot(labels, self._config.label_smoothing)

    def evaluator(self) -> Evaluator:
        return MultiLabelEvaluator()
