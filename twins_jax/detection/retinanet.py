"""RetinaNet (arXiv 1708.02002): every anchor of a feature pyramid is classified and moved."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from twins_jax.config import DTypes, TwinsConfig
from twins_jax.detection.anchors import RETINANET_ANCHORS
from twins_jax.detection.boxes import RPN_STDS, clip_boxes, decode_boxes, has_area
from twins_jax.detection.detector import (
    MAX_DETECTIONS,
    NMS_THRESHOLD,
    SCORE_THRESHOLD,
    Detections,
    TwinsDetector,
    by_anchor,
    chosen,
    map_sizes,
)
from twins_jax.detection.nms import nms
from twins_jax.fpn import FeaturePyramid
from twins_jax.layers import Conv

MAX_PER_LEVEL = 1000
"""Pairs of an anchor and a class that enter NMS from each level (upstream's `test_cfg`, `nms_pre`)."""

PRIOR = 0.01
"""The probability of every class at every anchor before training."""


class RetinaHead(nnx.Module):
    """Two towers of four 3x3 convolutions with ReLU, shared by the levels: classes and boxes (mmdet's `RetinaHead`).

    All kernels start from a normal distribution of deviation 0.01, and classes from the probability `PRIOR`.
    """

    def __init__(
        self, num_classes: int, channels: int = 256, *, in_channels: int = 256, dtypes: DTypes, rngs: nnx.Rngs
    ) -> None:
        def conv(width: int, out_channels: int) -> Conv:
            init = nnx.initializers.normal(0.01)
            return Conv(width, out_channels, 3, kernel_init=init, **dtypes, rngs=rngs)

        def tower() -> nnx.List[Conv]:
            return nnx.List(conv(channels if i else in_channels, channels) for i in range(4))

        anchors = RETINANET_ANCHORS.per_cell
        self.cls_convs, self.reg_convs = tower(), tower()
        self.cls = conv(channels, anchors * num_classes)
        self.cls.bias[...] = jnp.full_like(self.cls.bias[...], math.log(PRIOR / (1 - PRIOR)))
        self.reg = conv(channels, anchors * 4)

    def __call__(self, features: Sequence[jax.Array]) -> list[tuple[jax.Array, jax.Array]]:
        """Classifies and moves the anchors of each level.

        Args:
            features: maps [B, h, w, in_channels].

        Returns:
            For each map logits [B, h, w, 9 * num_classes] and deltas [B, h, w, 36]. Channels are those of one anchor
            after the other.
        """
        return [(_run(self.cls_convs, self.cls, x), _run(self.reg_convs, self.reg, x)) for x in features]


def _run(tower: Sequence[Conv], last: Conv, x: jax.Array) -> jax.Array:
    for conv in tower:
        x = jax.nn.relu(conv(x))
    return last(x)


class TwinsRetinaNet(TwinsDetector):
    """RetinaNet with a Twins backbone (upstream's `detection/configs/retinanet_*`); arguments: see `TwinsDetector`.

    The pyramid reads the backbone's maps at strides 8, 16 and 32, and has two extra levels, of strides 64 and 128.
    """

    head = "retinanet"

    def __init__(self, config: TwinsConfig, num_classes: int, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, num_classes, rngs=rngs)
        init = nnx.initializers.xavier_uniform()
        self.neck = FeaturePyramid(
            config.embed_dims[1:], extra_levels=2, kernel_init=init, dtypes=config.dtypes, rngs=rngs
        )
        self.heads = RetinaHead(self.num_classes, dtypes=config.dtypes, rngs=rngs)

    def features(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> tuple[jax.Array, ...]:
        """Computes the five maps P3 to P7, of strides 8 to 128; see `TwinsDetector.features`."""
        return self.neck(self.backbone(images, rngs=rngs)[1:])

    def detections(self, features: Sequence[jax.Array], sizes: jax.Array) -> Detections:
        return dense_detections(self.heads(features), sizes)


def dense_detections(outputs: Sequence[tuple[jax.Array, jax.Array]], sizes: jax.Array) -> Detections:
    """Finds the best boxes in the outputs of a `RetinaHead` (mmdet 3's `RetinaHead.predict_by_feat`).

    The `MAX_PER_LEVEL` best pairs of an anchor and a class of each level, of scores above `SCORE_THRESHOLD`, enter NMS
    class by class. mmdet 2.8 takes all pairs of the 1,000 best anchors instead, up to 80,000 a level; its authors
    report the same results. Boxes without area are dropped, as in mmdet 3. Boxes are compared in the network's pixels,
    not in those of the image before it was resized.

    Args:
        outputs: of each level, logits [B, h, w, 9 * num_classes] and deltas [B, h, w, 36].
        sizes: [B, 2], height and width of each image; boxes are clipped to it.

    Returns:
        The `MAX_DETECTIONS` best boxes of each image.
    """
    anchors = RETINANET_ANCHORS.levels(map_sizes(outputs))
    num_classes = outputs[0][0].shape[-1] // RETINANET_ANCHORS.per_cell
    levels = [(by_anchor(logits, num_classes), by_anchor(deltas, 4)) for logits, deltas in outputs]

    def of_image(levels: Sequence[tuple[jax.Array, jax.Array]], size: jax.Array) -> Detections:
        parts = [_best_pairs(*level, jnp.asarray(cells)) for level, cells in zip(levels, anchors, strict=True)]
        boxes, scores, labels = (jnp.concatenate(part) for part in zip(*parts, strict=True))
        boxes = clip_boxes(boxes, size)
        valid = (scores > SCORE_THRESHOLD) & has_area(boxes)
        kept = nms(boxes, scores, labels, valid, iou_threshold=NMS_THRESHOLD, max_outputs=MAX_DETECTIONS)
        return chosen(boxes, scores, labels, kept.indices, kept.valid)

    return jax.vmap(of_image)(levels, sizes)


def _best_pairs(logits: jax.Array, deltas: jax.Array, anchors: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns boxes, scores and labels of the best pairs of one level, of equal ones those of the first anchors.

    The best pairs are of the anchors whose best classes are best. Hence all anchors are sorted, and then the pairs of
    1,000 of them, in place of all pairs, of which a level has 12 million at 800x1344.
    """
    count, num_classes = logits.shape
    _, rows = lax.top_k(logits.max(axis=-1), min(MAX_PER_LEVEL, count))
    rows = jnp.sort(rows)
    pairs = logits[rows].reshape(-1)
    best, index = lax.top_k(pairs, min(MAX_PER_LEVEL, pairs.size))
    rows = rows[index // num_classes]
    boxes = decode_boxes(deltas[rows], anchors[rows], RPN_STDS)
    return boxes, jax.nn.sigmoid(best.astype(jnp.float32)), index % num_classes
