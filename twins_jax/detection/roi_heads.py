"""The heads of Mask R-CNN that look into regions of the pyramid (arXiv 1703.06870): classes and boxes, and masks."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from twins_jax import ops
from twins_jax.config import DTypes
from twins_jax.detection.boxes import BOX_HEAD_STDS, clip_boxes, decode_boxes
from twins_jax.detection.detector import MAX_DETECTIONS, NMS_THRESHOLD, SCORE_THRESHOLD, Detections, chosen
from twins_jax.detection.nms import nms
from twins_jax.detection.roi_align import STRIDES, pyramid_roi_align
from twins_jax.fit import declare
from twins_jax.layers import Conv, Linear, conv_init

BOX_SIDE, MASK_SIDE = 7, 14
"""Positions along each side of a region."""

MAX_PAIRS = 4096
"""Pairs of a region and a class that enter NMS. mmdet lets all in whose score is above `SCORE_THRESHOLD`."""


class BoxHead(nnx.Module):
    """Classifies and moves regions by two hidden linear layers with ReLU (mmdet's `Shared2FCBBoxHead`).

    Args:
        num_classes: without the background, whose logit is the last.
        in_channels: of the pyramid.
        hidden: width of the hidden layers.
        dtypes: of the computation and of the parameters.
        rngs: `params` stream.
    """

    def __init__(
        self, num_classes: int, in_channels: int = 256, hidden: int = 1024, *, dtypes: DTypes, rngs: nnx.Rngs
    ) -> None:
        def linear(width: int, out_features: int, init: nnx.Initializer) -> Linear:
            return Linear(width, out_features, kernel_init=init, **dtypes, rngs=rngs)

        xavier, normal = nnx.initializers.xavier_uniform(), nnx.initializers.normal
        self.shared_fcs = nnx.List(
            [linear(BOX_SIDE * BOX_SIDE * in_channels, hidden, xavier), linear(hidden, hidden, xavier)]
        )
        self.cls = linear(hidden, num_classes + 1, normal(0.01))
        self.reg = linear(hidden, 4 * num_classes, normal(0.001))

    def __call__(self, features: Sequence[jax.Array], boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Classifies and moves boxes.

        Args:
            features: the pyramid, fine to coarse, of which the first four levels are read: [B, h, w, in_channels].
            boxes: float32 [B, N, 4]; no gradient flows into them.

        Returns:
            Logits [B, N, num_classes + 1], of which the last is the background's, and deltas [B, N, 4 * num_classes],
            those of one class after the other.
        """
        return self.on_regions(_regions(features, boxes, BOX_SIDE))

    def on_regions(self, regions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Computes a call from what `pyramid_roi_align` gives for the boxes, [B, N, 7, 7, in_channels]."""
        x = lax.collapse(regions, 2)
        for linear in self.shared_fcs:
            x = jax.nn.relu(linear(x))
        return self.cls(x), self.reg(x)


class MaskHead(nnx.Module):
    """Draws a mask of each class into regions by four 3x3 convolutions with ReLU (mmdet's `FCNMaskHead`).

    Kernels start from Kaiming's normal distribution, of variance 2 / (kernel area * output channels).

    Args:
        num_classes: masks of each region.
        in_channels: of the pyramid.
        channels: of the convolutions.
        dtypes: of the computation and of the parameters.
        rngs: `params` stream.
    """

    def __init__(
        self, num_classes: int, in_channels: int = 256, channels: int = 256, *, dtypes: DTypes, rngs: nnx.Rngs
    ) -> None:
        self.convs = nnx.List(
            Conv(channels if i else in_channels, channels, 3, kernel_init=conv_init(9 * channels), **dtypes, rngs=rngs)
            for i in range(4)
        )
        self.upsample = Upsample(channels, channels, **dtypes, rngs=rngs)
        self.logits = Conv(channels, num_classes, 1, kernel_init=conv_init(num_classes), **dtypes, rngs=rngs)

    def __call__(self, features: Sequence[jax.Array], boxes: jax.Array) -> jax.Array:
        """Draws masks.

        Args:
            features: the pyramid, fine to coarse, of which the first four levels are read: [B, h, w, in_channels].
            boxes: float32 [B, N, 4]; no gradient flows into them.

        Returns:
            Logits [B, N, 28, 28, num_classes].
        """
        return self.on_regions(_regions(features, boxes, MASK_SIDE))

    def on_regions(self, regions: jax.Array) -> jax.Array:
        """Computes a call from what `pyramid_roi_align` gives for the boxes, [B, N, 14, 14, in_channels]."""
        x = lax.collapse(regions, 0, 2)
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        x = self.logits(jax.nn.relu(self.upsample(x)))
        return x.reshape(*regions.shape[:2], *x.shape[1:])


class Upsample(nnx.Module):
    """A transposed convolution of size and stride 2: [B, H, W, in] -> [B, 2 H, 2 W, out].

    Position (2 i + a, 2 j + b) is the product of position (i, j) of the input and the kernel's [:, a, b, :].

    Parameters: kernel [in, 2, 2, out], bias [out]. The kernel starts from a normal distribution of variance
    2 / (4 * in), PyTorch's Kaiming of fan-out, which takes the input's channels for the output's.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        shape = (in_channels, 2, 2, out_channels)
        self.kernel = declare(nnx.Param, conv_init(4 * in_channels)(rngs.params(), shape, param_dtype))
        self.bias = declare(nnx.Param, jnp.zeros((out_channels,), param_dtype))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        kernel = self.kernel[...].reshape(channels, -1)
        x = ops.linear(x, kernel, jnp.tile(self.bias[...], 4), dtype=self.dtype)
        out_channels = self.bias.shape[0]
        x = x.reshape(batch, height, width, 2, 2, out_channels).swapaxes(2, 3)
        return x.reshape(batch, 2 * height, 2 * width, out_channels)


def _regions(features: Sequence[jax.Array], boxes: jax.Array, side: int) -> jax.Array:
    return pyramid_roi_align(features[: len(STRIDES)], boxes, output_size=side)


def region_detections(
    logits: jax.Array, deltas: jax.Array, boxes: jax.Array, valid: jax.Array, sizes: jax.Array
) -> Detections:
    """Finds the best boxes in the outputs of a `BoxHead` (mmdet's `BBoxHead.get_bboxes` and `multiclass_nms`).

    Every class of every region has a box of its own. The `MAX_PAIRS` best pairs of scores above `SCORE_THRESHOLD` enter
    NMS class by class. The result is mmdet's, which takes all pairs, unless more pairs than that pass the threshold and
    fewer than `MAX_DETECTIONS` of the best survive. Boxes are compared in the network's pixels, not in those of the
    image before it was resized.

    Args:
        logits: [B, N, K + 1], the background's last.
        deltas: [B, N, 4 K].
        boxes: of the regions, [B, N, 4].
        valid: bool [B, N], False for regions that are none.
        sizes: [B, 2], height and width of each image; boxes are clipped to it.

    Returns:
        The `MAX_DETECTIONS` best boxes of each image, without masks.
    """
    num_classes = deltas.shape[-1] // 4

    def of_image(
        logits: jax.Array, deltas: jax.Array, boxes: jax.Array, valid: jax.Array, size: jax.Array
    ) -> Detections:
        scores = jnp.where(valid[:, None], jax.nn.softmax(logits)[:, :num_classes], 0)
        best, index = lax.top_k(scores.reshape(-1), min(MAX_PAIRS, scores.size))
        rows, labels = index // num_classes, index % num_classes
        moved = decode_boxes(deltas.reshape(-1, num_classes, 4)[rows, labels], boxes[rows], BOX_HEAD_STDS)
        moved = clip_boxes(moved, size)
        passing = best > SCORE_THRESHOLD
        kept = nms(moved, best, labels, passing, iou_threshold=NMS_THRESHOLD, max_outputs=MAX_DETECTIONS)
        return chosen(moved, best, labels, kept.indices, kept.valid)

    logits, deltas = (x.astype(jnp.float32) for x in (logits, deltas))
    return jax.vmap(of_image)(logits, deltas, boxes, valid, sizes)


def mask_probabilities(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the probabilities of one class of each box: logits [B, N, h, w, K] and labels [B, N] -> [B, N, h, w]."""
    picked = jnp.take_along_axis(logits, labels[..., None, None, None], axis=-1)[..., 0]
    return jax.nn.sigmoid(picked.astype(jnp.float32))
