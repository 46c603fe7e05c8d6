"""Semantic FPN (arXiv 1901.02446): a feature pyramid, summed at its finest level."""

from collections.abc import Sequence

import jax
from flax import nnx

from twins_jax import ops
from twins_jax.config import DTypes
from twins_jax.fpn import FeaturePyramid
from twins_jax.layers import ConvBatchNorm
from twins_jax.segmentation.fcn import PixelClassifier


class ScaleHead(nnx.Module):
    """Brings one level of the pyramid towards the finest one by convolutions, each followed by a resize by 2.

    Level k has max(1, k) convolutions 3x3 with BatchNorm and ReLU; the finest, level 0, is not resized.
    """

    def __init__(self, level: int, in_channels: int, channels: int, *, dtypes: DTypes, rngs: nnx.Rngs) -> None:
        self.level = level
        self.convs = nnx.List(
            ConvBatchNorm(channels if i else in_channels, channels, 3, **dtypes, rngs=rngs)
            for i in range(max(1, level))
        )

    def __call__(self, x: jax.Array, *, training: bool) -> jax.Array:
        for conv in self.convs:
            x = conv(x, training=training)
            if self.level:
                x = ops.resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]))
        return x


class SemanticFPNHead(nnx.Module):
    """Feature pyramid of 256 channels and the sum of its levels (mmseg's `FPN` and `FPNHead`; upstream's configs).

    Args:
        in_channels: of the backbone's four maps, fine to coarse.
        num_classes: outputs.
        channels: of the levels where they are summed.
        dtypes: of the computation and of the parameters.
        rngs: `params` stream.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 128,
        *,
        dtypes: DTypes,
        rngs: nnx.Rngs,
    ) -> None:
        width = 256
        # mmseg never calls the neck's own initializer: its convolutions keep mmcv's, as `ConvBatchNorm` has it.
        init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
        self.neck = FeaturePyramid(in_channels, width, kernel_init=init, dtypes=dtypes, rngs=rngs)
        self.scale_heads = nnx.List(
            ScaleHead(level, width, channels, dtypes=dtypes, rngs=rngs) for level in range(len(in_channels))
        )
        self.classifier = PixelClassifier(channels, num_classes, dtypes=dtypes, rngs=rngs)

    def __call__(self, maps: Sequence[jax.Array], rngs: nnx.Rngs | None = None) -> jax.Array:
        """Computes logits.

        Args:
            maps: the backbone's four, [B, h, w, C].
            rngs: `dropout` stream; its presence means training: BatchNorm takes the batch's statistics.

        Returns:
            Logits [B, h, w, num_classes] at the size of the first map.
        """
        training = rngs is not None
        levels = [head(x, training=training) for head, x in zip(self.scale_heads, self.neck(maps), strict=True)]
        total = levels[0]
        for level in levels[1:]:
            total = total + ops.resize_bilinear(level, (total.shape[1], total.shape[2]))
        return self.classifier(total, rngs)
