"""The region proposal network of Faster and Mask R-CNN (arXiv 1506.01497): where objects of any class may be."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from twins_jax.config import DTypes
from twins_jax.detection.anchors import RPN_ANCHORS
from twins_jax.detection.boxes import RPN_STDS, clip_boxes, decode_boxes, has_area
from twins_jax.detection.detector import by_anchor, map_sizes
from twins_jax.detection.nms import nms
from twins_jax.layers import Conv

PROPOSAL_NMS_THRESHOLD = 0.7
"""IoU above which a proposal suppresses those of its level with lower scores (upstream's `rpn_proposal`, `rpn`)."""


class RegionProposalNetwork(nnx.Module):
    """A 3x3 convolution with ReLU and two of 1x1, shared by the levels (mmdet's `RPNHead`).

    All kernels start from a normal distribution of deviation 0.01.
    """

    def __init__(self, channels: int = 256, *, in_channels: int = 256, dtypes: DTypes, rngs: nnx.Rngs) -> None:
        def conv(width: int, out_channels: int, size: int) -> Conv:
            return Conv(width, out_channels, size, kernel_init=nnx.initializers.normal(0.01), **dtypes, rngs=rngs)

        anchors = RPN_ANCHORS.per_cell
        self.conv = conv(in_channels, channels, 3)
        self.cls = conv(channels, anchors, 1)
        self.reg = conv(channels, anchors * 4, 1)

    def __call__(self, features: Sequence[jax.Array]) -> list[tuple[jax.Array, jax.Array]]:
        """Scores and moves the anchors of each level.

        Args:
            features: maps [B, h, w, in_channels].

        Returns:
            For each map logits [B, h, w, 3], of objects against background, and deltas [B, h, w, 12]. Channels are
            those of one anchor after the other.
        """
        hidden = [jax.nn.relu(self.conv(x)) for x in features]
        return [(self.cls(x), self.reg(x)) for x in hidden]


class Proposals(NamedTuple):
    """Boxes that may hold objects, best first.

    Attributes:
        boxes: float32 [B, N, 4], within their image; 0 where not valid.
        valid: bool [B, N], False in the places that are left over; they come last.
    """

    boxes: jax.Array
    valid: jax.Array


def proposals(
    outputs: Sequence[tuple[jax.Array, jax.Array]], sizes: jax.Array, number_per_level: int, number: int
) -> Proposals:
    """Finds the best boxes in the outputs of a `RegionProposalNetwork` (mmdet 3's `RPNHead`).

    The best boxes of each level go through NMS of their own; levels are padded to one number of boxes, and one program
    serves all. Boxes without area are dropped, as in mmdet 3; mmdet 2.8 keeps them. No gradient flows into the outputs.

    Args:
        outputs: of each level, logits [B, h, w, 3] and deltas [B, h, w, 12].
        sizes: [B, 2], height and width of each image; boxes are clipped to it.
        number_per_level: boxes of each level that enter NMS (upstream: 2,000 in training, 1,000 in testing).
        number: boxes of each image (upstream: 1,000).

    Returns:
        N boxes of each image: `number`, or as many as the levels have anchors to give.
    """
    anchors = RPN_ANCHORS.levels(map_sizes(outputs))
    levels = [(by_anchor(logits, 1), by_anchor(deltas, 4)) for logits, deltas in lax.stop_gradient(list(outputs))]
    most = min(number_per_level, max(map(len, anchors)))
    kept_per_level = min(number, most)

    def best(logits: jax.Array, deltas: jax.Array, anchors: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns boxes [most, 4] of a level and their scores, which are 0 in the places left over."""
        best_logits, rows = lax.top_k(logits[:, 0], min(most, len(anchors)))
        scores = jax.nn.sigmoid(best_logits.astype(jnp.float32))
        boxes = clip_boxes(decode_boxes(deltas[rows], anchors[rows], RPN_STDS), size)
        padding = (0, most - len(boxes))
        return jnp.pad(boxes, (padding, (0, 0))), jnp.pad(scores, padding)

    def survivors(boxes: jax.Array, scores: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the boxes of a level that NMS keeps, and their scores, which are -1 in the places left over."""
        threshold = PROPOSAL_NMS_THRESHOLD
        kept = nms(boxes, scores, None, has_area(boxes), iou_threshold=threshold, max_outputs=kept_per_level)
        return boxes[kept.indices], jnp.where(kept.valid, scores[kept.indices], -1)

    def of_image(levels: Sequence[tuple[jax.Array, jax.Array]], size: jax.Array) -> Proposals:
        parts = [best(*level, jnp.asarray(cells), size) for level, cells in zip(levels, anchors, strict=True)]
        boxes, scores = jax.vmap(survivors)(*(jnp.stack(part) for part in zip(*parts, strict=True)))
        scores, index = lax.top_k(scores.reshape(-1), min(number, scores.size))
        valid = scores >= 0
        return Proposals(jnp.where(valid[:, None], boxes.reshape(-1, 4)[index], 0), valid)

    return jax.vmap(of_image)(levels, sizes)
