"""Object detection and instance segmentation as a task of the training system."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
from flax import nnx

import twins_jax
from twins_jax import TwinsDetector, TwinsMaskRCNN
from twins_jax.detection.masks import mask_targets
from twins_jax.detection.preprocess import DetectionPreprocessing
from twins_jax.detection.rpn import proposals
from twins_jax.extra import check_installed
from twins_jax.paths import target_path
from twins_jax.preprocess import normalize, zero_padding

from ...data.pipeline import eval_batches, train_batches
from ...dense import create_dense_model
from ...task import Batch, DatasetInfo, Split
from .config import DetectionConfig
from .losses import POSITIVE_SHARE, RoIs, Truth, box_head_losses, mask_loss, retinanet_losses, rpn_losses, sample_rois
from .masks import unpack_bits
from .metrics import DetectionEvaluator, Kind
from .report import ReportEvaluator
from .shapes import Size, plan_batches, training_shape
from .sources import DetectionSource, dataset_info, open_source
from .transforms import eval_transforms, train_transforms

PROPOSALS_PER_LEVEL, PROPOSALS = 2000, 1000
"""Boxes of each level that enter suppression, and of an image that leave it, in training (upstream's
`rpn_proposal`)."""


MASKS_AT_A_TIME = 8
"""Boxes of each image whose masks are unpacked together."""


class DetectionTask:
    """Trains a `TwinsRetinaNet` or a `TwinsMaskRCNN` on images, boxes and masks; implements `Task`.

    Args:
        config: the run's.
        info: of the data set, to leave its files unread.

    Raises:
        InputError: the data set is not what it must be, or pycocotools is not installed.
    """

    best_metric = "box_ap"

    def __init__(self, config: DetectionConfig, info: DatasetInfo | None = None) -> None:
        check_installed("pycocotools", purpose="evaluating detectors", extra="train")
        self._config = config
        self._has_files = info is None
        self.info = info or dataset_info(self._sources["train"], self._sources["eval"])

    def create_model(self, rngs: nnx.Rngs) -> TwinsDetector:
        """Creates the detector as `create_dense_model` does, whose errors it has."""
        create, load = twins_jax.create_detector, twins_jax.detector_from_pretrained
        return create_dense_model(self._config, self.info.num_classes, rngs, create=create, load=load)

    def batches(self, split: Split, batch_size: int, *, shard: int = 0, shards: int = 1) -> grain.IterDataset:
        """Reads batches: see `batch_shapes` for "train", and `prediction.detect` for "eval"."""
        config, data, source = self._config, self._config.data, self._sources[split]
        if split == "train":
            transforms = train_transforms(data, *self._shape, masks=self._has_masks)
            seed = config.seed
            return train_batches(source, transforms, data, batch_size, seed=seed, shard=shard, shards=shards)
        plan = plan_batches(source.sizes, data, batch_size * shards)
        return eval_batches(source, eval_transforms(data), data, batch_size, plan=plan, shard=shard, shards=shards)

    @property
    def _has_masks(self) -> bool:
        return self._config.head == "mask_rcnn"

    @functools.cached_property
    def _sources(self) -> Mapping[Split, DetectionSource]:
        data, masks = self._config.data, self._has_masks
        return {"train": open_source(data, "train", masks=masks), "eval": open_source(data, "eval", masks=masks)}

    @functools.cached_property
    def _shape(self) -> tuple[Size, int]:
        """Height and width of the images of training, and the places for boxes in each; the largest without files."""
        data = self._config.data
        if self._has_files:
            source = self._sources["train"]
            return training_shape(source.sizes, data), source.boxes_an_image
        return DetectionPreprocessing(data.shorter, data.longer).padded_shape(data.shorter, data.longer), data.max_boxes

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the arrays of `transforms.train_transforms`, each with the examples of the batch along a first axis.

        They are {"image": uint8 [B, H, W, 3], "size": int32 [B, 2], "boxes": float32 [B, G, 4], "labels": int32
        [B, G], "valid": bool [B, G]}, and with masks {"masks": uint8 [B, G, H, W / 8]}.
        """
        (height, width), boxes = self._shape
        shapes = {
            "image": jax.ShapeDtypeStruct((batch_size, height, width, 3), jnp.uint8),
            "size": jax.ShapeDtypeStruct((batch_size, 2), jnp.int32),
            "boxes": jax.ShapeDtypeStruct((batch_size, boxes, 4), jnp.float32),
            "labels": jax.ShapeDtypeStruct((batch_size, boxes), jnp.int32),
            "valid": jax.ShapeDtypeStruct((batch_size, boxes), jnp.bool_),
        }
        if self._has_masks:
            shapes["masks"] = jax.ShapeDtypeStruct((batch_size, boxes, height, width // 8), jnp.uint8)
        return shapes

    def augment(self, batch: Batch, keys: Sequence[jax.Array]) -> Batch:
        """Normalizes the images: float32 [B, H, W, 3], 0 beyond their sizes."""
        del keys
        return {**batch, "image": zero_padding(normalize(batch["image"]), batch["size"])}

    def loss(self, model: Any, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes the sum of the losses of all heads.

        The scalars are its terms: "loss_cls" and "loss_bbox", and of Mask R-CNN also "loss_rpn_cls", "loss_rpn_bbox"
        and "loss_mask".
        """
        truth = Truth(*(batch[name] for name in ("boxes", "labels", "valid", "size")))
        features = model.features(batch["image"], rngs=rngs)
        if self._has_masks:
            losses = self._region_losses(model, features, batch["masks"], truth, rngs)
        else:
            losses = retinanet_losses(model.heads(features), truth, self._config.group_size)
        return sum(losses.values(), jnp.zeros(())), losses

    def _region_losses(
        self, model: TwinsMaskRCNN, features: Sequence[jax.Array], masks: jax.Array, truth: Truth, rngs: nnx.Rngs
    ) -> dict[str, jax.Array]:
        size, samples = self._config.group_size, self._config.box_samples
        outputs = model.rpn(features)
        losses = rpn_losses(outputs, truth, rngs.dropout(), size)
        found = proposals(outputs, truth.sizes, PROPOSALS_PER_LEVEL, PROPOSALS)
        rois = sample_rois(*found, truth, rngs.dropout(), samples)
        losses |= box_head_losses(*model.box_head(features, rois.boxes), rois, truth, size)
        positives = RoIs(*(each[:, : samples // POSITIVE_SHARE] for each in rois))
        targets = jax.vmap(_mask_targets)(masks, positives)
        logits = model.mask_head(features, positives.boxes)
        return losses | {"loss_mask": mask_loss(logits, targets, positives, truth, size)}

    def evaluator(self) -> DetectionEvaluator:
        return DetectionEvaluator(self._truth, self._kinds, target_path("workdir", self._config.workdir, "folder"))

    def report(self, folder: Path) -> ReportEvaluator:
        return ReportEvaluator(folder, self._truth, self._kinds)

    @property
    def _kinds(self) -> tuple[Kind, ...]:
        return ("bbox", "segm") if self._has_masks else ("bbox",)

    @functools.cached_property
    def _truth(self) -> dict[str, Any]:
        return self._sources["eval"].file.ground_truth()


def _mask_targets(masks: jax.Array, rois: RoIs) -> jax.Array:
    """Computes the targets of one image's boxes, float32 [P, 28, 28], of masks as bits, uint8 [G, H, W / 8].

    The bits of a few boxes are unpacked at a time: all bitmaps of 100 objects at 800x1344 would take 107 MB.
    """

    def of_box(box_and_index: tuple[jax.Array, jax.Array]) -> jax.Array:
        box, index = box_and_index
        bitmap = unpack_bits(masks[index])
        return mask_targets(bitmap[None], box[None], jnp.zeros(1, jnp.int32))[0]

    return jax.lax.map(of_box, (rois.boxes, jnp.maximum(rois.assigned, 0)), batch_size=MASKS_AT_A_TIME)
