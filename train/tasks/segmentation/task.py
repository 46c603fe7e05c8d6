"""Semantic segmentation as a task of the training system."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import twins_jax
from twins_jax import TwinsSegmenter
from twins_jax.errors import InputError
from twins_jax.preprocess import normalize, zero_padding
from twins_jax.segmentation.palette import IGNORED

from ...data.pipeline import eval_batches, train_batches
from ...data.planned import PlannedBatch
from ...dense import create_dense_model
from ...task import Batch, DatasetInfo, Split
from .config import SegmentationConfig
from .groups import Size, plan_batches
from .losses import pixel_cross_entropy
from .metrics import SegmentationEvaluator
from .photometric import distort
from .prediction import image_name, size_name
from .report import ReportEvaluator
from .sources import SegmentationSource, open_source
from .transforms import eval_transforms, train_transforms


class SegmentationTask:
    """Trains a `TwinsSegmenter` on images and masks; implements `Task`.

    Args:
        config: the run's.
        info: of the data set, to leave its files unread.

    Raises:
        InputError: the data set is not what it must be.
    """

    best_metric = "miou"

    def __init__(self, config: SegmentationConfig, info: DatasetInfo | None = None) -> None:
        self._config = config
        self.info = info or _info(self._sources["train"], self._sources["eval"])

    def create_model(self, rngs: nnx.Rngs) -> TwinsSegmenter:
        """Creates the segmenter as `create_dense_model` does, whose errors it has."""
        create, load = twins_jax.create_segmenter, twins_jax.segmenter_from_pretrained
        return create_dense_model(self._config, self.info.num_classes, rngs, create=create, load=load)

    def batches(self, split: Split, batch_size: int, *, shard: int = 0, shards: int = 1) -> grain.IterDataset:
        """Reads batches: see `batch_shapes` for "train", and `prediction.predict` for "eval"."""
        data, source = self._config.data, self._sources[split]
        if split == "train":
            transforms = train_transforms(data, self.info.num_classes)
            seed = self._config.seed
            return train_batches(source, transforms, data, batch_size, seed=seed, shard=shard, shards=shards)
        return eval_batches(
            source,
            [*eval_transforms(data, self.info.num_classes), WithSizes(len(data.eval_scales))],
            data,
            batch_size,
            plan=self._plan(batch_size * shards),
            fill={"label": IGNORED},
            shard=shard,
            shards=shards,
        )

    @functools.cached_property
    def _sources(self) -> Mapping[Split, SegmentationSource]:
        data = self._config.data
        return {"train": open_source(data, "train"), "eval": open_source(data, "eval")}

    def _plan(self, batch_size: int) -> list[PlannedBatch]:
        return plan_batches(self._sizes, self._config.data, batch_size)

    @functools.cached_property
    def _sizes(self) -> list[Size]:
        """The heights and widths of the images of evaluation, from their files' headers."""
        source, found = self._sources["eval"], []
        for number in range(len(source)):
            try:
                found.append(source.size(number))
            except InputError:
                if self._config.data.on_error == "stop":
                    raise
                found.append(found[-1] if found else (self._config.data.shorter,) * 2)  # will be skipped when read
        return found

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns {"image": uint8 [B, S, S, 3], "label": uint8 [B, S, S], "size": int32 [B, 2]}.

        A crop fills the top left `size`, height and width; beyond it the label is `IGNORED`.
        """
        side = self._config.data.crop_size
        return {
            "image": jax.ShapeDtypeStruct((batch_size, side, side, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((batch_size, side, side), jnp.uint8),
            "size": jax.ShapeDtypeStruct((batch_size, 2), jnp.int32),
        }

    def augment(self, batch: Batch, keys: Sequence[jax.Array]) -> Batch:
        """Distorts colors and normalizes: {"image": float32 [B, S, S, 3], 0 beyond the crop, "label"}."""
        images = batch["image"]
        if self._config.data.photometric:
            images = distort(keys[0], images)
        return {"image": zero_padding(normalize(images), batch["size"]), "label": batch["label"]}

    def loss(self, model: Any, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes the head's loss plus `auxiliary_weight` times that of the auxiliary head.

        The scalars are "loss_decode" and, of UPerNet, "loss_auxiliary".
        """
        logits = model.training_logits(batch["image"], rngs=rngs)
        loss = pixel_cross_entropy(logits.decode, batch["label"])
        scalars = {"loss_decode": loss}
        if logits.auxiliary is not None:
            scalars["loss_auxiliary"] = pixel_cross_entropy(logits.auxiliary, batch["label"])
            loss = loss + self._config.auxiliary_weight * scalars["loss_auxiliary"]
        return loss, scalars

    def evaluator(self) -> SegmentationEvaluator:
        return SegmentationEvaluator(self._config.data, self.info.num_classes)

    def report(self, folder: Path) -> ReportEvaluator:
        source = self._sources["eval"]
        plan = self._plan(self._config.eval_batch_size)  # of a run of one process, which alone makes reports
        return ReportEvaluator(folder, self.info.class_names, self._config.data, plan, lambda i: source[i]["name"])


def _info(train: SegmentationSource, evaluation: SegmentationSource) -> DatasetInfo:
    return DatasetInfo(len(train.class_names), train.class_names, len(train), len(evaluation))


class WithSizes(grain.transforms.Map):
    """Adds the sizes of images and label, int32 [2], which padding would hide.

    Args:
        scales: number of images.
    """

    def __init__(self, scales: int) -> None:
        self._names = {image_name(i): size_name(i) for i in range(scales)} | {"label": "label_size"}

    def map(self, element: dict[str, Any]) -> dict[str, Any]:
        sizes = {size: np.array(element[name].shape[:2], np.int32) for name, size in self._names.items()}
        return {**element, **sizes}
