"""The losses of RetinaNet and Mask R-CNN, with the targets and the normalization of mmdet 2.8.

mmdet computes a loss for the images of one GPU, of which a count of anchors or boxes is the divisor, and averages the
gradients of the GPUs. Here a batch is cut into groups of as many images: each loss is the mean over the groups of a sum
over the group's images divided by a count over them. The mean over a whole batch would weigh images otherwise.

B is the number of images, G of ground truths in the arrays, K of classes. All losses are float32.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from twins_jax.detection.anchors import RETINANET_ANCHORS, RPN_ANCHORS, Anchors, anchors_inside
from twins_jax.detection.assign import IGNORED, assign
from twins_jax.detection.boxes import BOX_HEAD_STDS, RPN_STDS, Stds, encode_boxes
from twins_jax.detection.detector import by_anchor, map_sizes
from twins_jax.detection.losses import sigmoid_focal_loss
from twins_jax.detection.sampling import sample

Outputs = Sequence[tuple[jax.Array, jax.Array]]
"""Of each level, fine to coarse: class logits [B, h, w, A * classes] and deltas [B, h, w, A * 4]."""

RPN_SAMPLES, RPN_POSITIVES = 256, 128
"""Anchors of an image that are learned from, and the most of them that are positive."""

POSITIVE_SHARE = 4
"""One in so many sampled boxes is positive at most."""


class Truth(NamedTuple):
    """The ground truth of a batch.

    Attributes:
        boxes: float32 [B, G, 4], pixels of the network's input.
        labels: int32 [B, G].
        valid: bool [B, G], False on padding.
        sizes: int32 [B, 2], height and width of the images before padding.
    """

    boxes: jax.Array
    labels: jax.Array
    valid: jax.Array
    sizes: jax.Array


class RoIs(NamedTuple):
    """The boxes of each image from which the box head and the mask head learn, positive ones first.

    Attributes:
        boxes: float32 [B, N, 4], without a gradient.
        assigned: int32 [B, N], the index of the ground truth; `BACKGROUND`, or `IGNORED` on padding.
        valid: bool [B, N], False on padding.
    """

    boxes: jax.Array
    assigned: jax.Array
    valid: jax.Array

    @property
    def is_positive(self) -> jax.Array:
        """Bool [B, N]: has a ground truth."""
        return self.assigned >= 0


def grouped_mean(sums: jax.Array, counts: jax.Array, group_size: int) -> jax.Array:
    """Divides sums by counts, at least 1, in each group, and averages the quotients.

    Args:
        sums: float32 [B].
        counts: integers [B].
        group_size: neighboring images of a group; a smaller batch is one group.
    """
    size = min(group_size, len(sums))
    sums, counts = (each.reshape(-1, size).sum(axis=1) for each in (sums, counts))
    return jnp.mean(sums / jnp.maximum(counts, 1).astype(sums.dtype))


def retinanet_losses(outputs: Outputs, truth: Truth, group_size: int) -> dict[str, jax.Array]:
    """Computes RetinaNet's losses over all anchors of all levels.

    Anchors of an IoU of at least 0.5 are positive, as are the best of each ground truth; those below 0.4 are negative.
    The divisor is the number of positive anchors, counted as at least 1 in each image.

    Args:
        outputs: of the heads.
        truth: of the batch.
        group_size: images that share a divisor.

    Returns:
        "loss_cls", the sigmoid focal loss of anchors that are not ignored, and "loss_bbox", the L1 loss of the deltas
        of positive ones.
    """
    shapes = map_sizes(outputs)
    anchors = [jnp.asarray(level) for level in RETINANET_ANCHORS.levels(shapes)]
    everywhere = jnp.concatenate(anchors)
    assigned = _assign_anchors(
        RETINANET_ANCHORS, everywhere, shapes, truth, positive=0.5, negative=0.4, min_positive=0.0
    )
    focal, l1 = jnp.zeros(len(truth.boxes)), jnp.zeros(len(truth.boxes))
    start = 0
    for (logits, deltas), boxes in zip(outputs, anchors, strict=True):
        # Level by level: the logits of all, 65 MB an image of COCO at 800x1344, are never copied into one array.
        of_level = assigned[:, start : start + len(boxes)]
        start += len(boxes)
        of_classes, of_boxes = jax.vmap(_retinanet_sums, in_axes=(0, 0, None, 0, 0, 0))(
            _per_anchor(logits, RETINANET_ANCHORS),
            _per_anchor(deltas, RETINANET_ANCHORS),
            boxes,
            of_level,
            truth.boxes,
            truth.labels,
        )
        focal, l1 = focal + of_classes, l1 + of_boxes
    positives = jnp.maximum(jnp.sum(assigned >= 0, axis=1, dtype=jnp.int32), 1)
    return {
        "loss_cls": grouped_mean(focal, positives, group_size),
        "loss_bbox": grouped_mean(l1, positives, group_size),
    }


def _retinanet_sums(
    logits: jax.Array, deltas: jax.Array, anchors: jax.Array, assigned: jax.Array, boxes: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sums both losses of one image over the anchors of a level."""
    is_positive = assigned >= 0
    of_anchor = jnp.where(is_positive, labels[jnp.maximum(assigned, 0)], -1)
    targets = of_anchor[:, None] == jnp.arange(logits.shape[-1], dtype=jnp.int32)
    losses = sigmoid_focal_loss(logits, targets)
    focal = jnp.where((assigned != IGNORED)[:, None], losses, 0.0).sum()
    return focal, _l1(deltas, anchors, boxes, assigned, RPN_STDS)


def rpn_losses(outputs: Outputs, truth: Truth, key: jax.Array, group_size: int) -> dict[str, jax.Array]:
    """Computes the losses of the region proposal network over 256 sampled anchors of each image, half at most positive.

    Anchors of an IoU of at least 0.7 are positive, as are the best of each ground truth from 0.3 on; those below 0.3
    are negative. The divisor of both losses is the number of samples, of either kind counted as at least 1 in each
    image.

    Args:
        outputs: of the network, with one logit an anchor.
        truth: of the batch.
        key: draws the samples.
        group_size: images that share a divisor.

    Returns:
        "loss_rpn_cls", the binary cross-entropy, and "loss_rpn_bbox", the L1 loss of the deltas of positive anchors.
    """
    shapes = map_sizes(outputs)
    anchors = jnp.concatenate([jnp.asarray(level) for level in RPN_ANCHORS.levels(shapes)])
    assigned = _assign_anchors(RPN_ANCHORS, anchors, shapes, truth, positive=0.7, negative=0.3, min_positive=0.3)
    logits, deltas = (
        jnp.concatenate([_per_anchor(level[part], RPN_ANCHORS) for level in outputs], axis=1) for part in (0, 1)
    )

    def of_image(
        key: jax.Array, logits: jax.Array, deltas: jax.Array, assigned: jax.Array, boxes: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        samples = sample(key, assigned, number=RPN_SAMPLES, max_positive=RPN_POSITIVES)
        is_positive = samples.assigned >= 0
        losses = optax.sigmoid_binary_cross_entropy(logits[samples.indices, 0], is_positive.astype(jnp.float32))
        positives = jnp.sum(is_positive, dtype=jnp.int32)
        negatives = jnp.sum(samples.valid, dtype=jnp.int32) - positives
        return (
            jnp.where(samples.valid, losses, 0.0).sum(),
            _l1(deltas[samples.indices], anchors[samples.indices], boxes, samples.assigned, RPN_STDS),
            jnp.maximum(positives, 1) + jnp.maximum(negatives, 1),
        )

    keys = jax.random.split(key, len(truth.boxes))
    entropy, l1, counts = jax.vmap(of_image)(keys, logits, deltas, assigned, truth.boxes)
    return {
        "loss_rpn_cls": grouped_mean(entropy, counts, group_size),
        "loss_rpn_bbox": grouped_mean(l1, counts, group_size),
    }


def sample_rois(proposals: jax.Array, valid: jax.Array, truth: Truth, key: jax.Array, number: int) -> RoIs:
    """Samples boxes of each image from the ground truths and the proposals, a quarter at most positive.

    Proposals of an IoU of at least 0.5 are positive, the others negative. Each ground truth belongs to itself; it does
    not compete with the proposals for being another's best.

    Args:
        proposals: float32 [B, N, 4], of the region proposal network.
        valid: bool [B, N], False on padding.
        truth: of the batch.
        key: draws the samples.
        number: of boxes to sample of an image.
    """

    def of_image(
        key: jax.Array, proposals: jax.Array, valid: jax.Array, boxes: jax.Array, is_truth: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        of_proposals = assign(proposals, boxes, is_truth, positive=0.5, negative=0.5, min_positive=0.5, valid=valid)
        own = jnp.where(is_truth, jnp.arange(len(boxes), dtype=jnp.int32), IGNORED)
        assigned = jnp.concatenate([own, of_proposals])
        samples = sample(key, assigned, number=number, max_positive=number // POSITIVE_SHARE)
        return jnp.concatenate([boxes, proposals])[samples.indices], samples.assigned, samples.valid

    keys = jax.random.split(key, len(proposals))
    proposals = jax.lax.stop_gradient(proposals)
    return RoIs(*jax.vmap(of_image)(keys, proposals, valid, truth.boxes, truth.valid))


def box_head_losses(
    logits: jax.Array, deltas: jax.Array, rois: RoIs, truth: Truth, group_size: int
) -> dict[str, jax.Array]:
    """Computes the losses of the box head; the divisor of both is the number of boxes.

    Args:
        logits: [B, N, K + 1], background last.
        deltas: [B, N, 4 K], those of a class side by side.
        rois: the boxes.
        truth: of the batch.
        group_size: images that share a divisor.

    Returns:
        "loss_cls", the cross-entropy, and "loss_bbox", the L1 loss of the deltas of the positive boxes' own classes.
    """
    num_classes = logits.shape[-1] - 1

    def of_image(
        logits: jax.Array, deltas: jax.Array, rois: RoIs, boxes: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        of_box = labels[jnp.maximum(rois.assigned, 0)]
        classes = jnp.where(rois.is_positive, of_box, num_classes)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), classes)
        of_classes = deltas.astype(jnp.float32).reshape(len(deltas), num_classes, 4)
        own = jnp.take_along_axis(of_classes, jnp.where(rois.is_positive, of_box, 0)[:, None, None], axis=1)[:, 0]
        return (
            jnp.where(rois.valid, losses, 0.0).sum(),
            _l1(own, rois.boxes, boxes, rois.assigned, BOX_HEAD_STDS),
            jnp.sum(rois.valid, dtype=jnp.int32),
        )

    entropy, l1, counts = jax.vmap(of_image)(logits, deltas, rois, truth.boxes, truth.labels)
    return {
        "loss_cls": grouped_mean(entropy, counts, group_size),
        "loss_bbox": grouped_mean(l1, counts, group_size),
    }


def mask_loss(logits: jax.Array, targets: jax.Array, rois: RoIs, truth: Truth, group_size: int) -> jax.Array:
    """Computes the mean binary cross-entropy of the positive boxes' masks, of their own classes.

    Args:
        logits: [B, P, h, w, K].
        targets: float32 [B, P, h, w], 0 and 1.
        rois: the P boxes.
        truth: of the batch.
        group_size: images that share a divisor.
    """
    labels = jnp.take_along_axis(truth.labels, jnp.maximum(rois.assigned, 0), axis=1)
    own = jnp.take_along_axis(logits, labels[:, :, None, None, None], axis=-1)[..., 0]
    losses = optax.sigmoid_binary_cross_entropy(own.astype(jnp.float32), targets).mean(axis=(2, 3))
    sums = jnp.where(rois.is_positive, losses, 0.0).sum(axis=1)
    return grouped_mean(sums, jnp.sum(rois.is_positive, axis=1, dtype=jnp.int32), group_size)


def _assign_anchors(
    anchors: Anchors,
    boxes: jax.Array,
    shapes: Sequence[tuple[int, int]],
    truth: Truth,
    **thresholds: float,
) -> jax.Array:
    """Assigns the anchors of each image, int32 [B, A]; those beyond its own padded shape are ignored."""

    def of_image(truth: Truth) -> jax.Array:
        inside = anchors_inside(anchors, shapes, truth.sizes)
        return assign(boxes, truth.boxes, truth.valid, **thresholds, valid=inside)

    return jax.lax.stop_gradient(jax.vmap(of_image)(truth))


def _per_anchor(outputs: jax.Array, anchors: Anchors) -> jax.Array:
    """Returns a level's outputs by anchor, float32 [B, h * w * A, C], of [B, h, w, A * C]."""
    return by_anchor(outputs.astype(jnp.float32), outputs.shape[-1] // anchors.per_cell)


def _l1(deltas: jax.Array, candidates: jax.Array, boxes: jax.Array, assigned: jax.Array, stds: Stds) -> jax.Array:
    """Sums the L1 loss of the deltas [N, 4] of positive candidates, whose ground truths are `boxes[assigned]`."""
    targets = encode_boxes(boxes[jnp.maximum(assigned, 0)], candidates, stds)
    return jnp.where((assigned >= 0)[:, None], jnp.abs(deltas - targets), 0.0).sum()
