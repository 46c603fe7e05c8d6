"""UPerNet (arXiv 1807.10221): pyramid pooling of the last map, and a feature pyramid whose levels are fused."""

from collections.abc import Sequence

import jax
from flax import nnx

from twins_jax import ops
from twins_jax.config import DTypes
from twins_jax.layers import ConvBatchNorm
from twins_jax.segmentation.fcn import PixelClassifier

POOL_SCALES = (1, 2, 3, 6)
"""Bins along each side of the last map, over which the pyramid pooling averages."""


class PyramidPooling(nnx.Module):
    """Averages over coarse grids, beside the map itself, fused: [B, h, w, C] -> [B, h, w, channels] (PPM)."""

    def __init__(self, in_channels: int, channels: int, *, dtypes: DTypes, rngs: nnx.Rngs) -> None:
        self.convs = nnx.List(ConvBatchNorm(in_channels, channels, 1, **dtypes, rngs=rngs) for _ in POOL_SCALES)
        fused = in_channels + len(POOL_SCALES) * channels
        self.bottleneck = ConvBatchNorm(fused, channels, 3, **dtypes, rngs=rngs)

    def __call__(self, x: jax.Array, *, training: bool) -> jax.Array:
        pooled = [
            conv(ops.adaptive_average_pool(x, bins), training=training)
            for bins, conv in zip(POOL_SCALES, self.convs, strict=True)
        ]
        return self.bottleneck.on_resized([x, *pooled], training=training)


class UPerHead(nnx.Module):
    """Pyramid pooling, a feature pyramid and the fusion of its levels (mmseg's `UPerHead`; upstream's configs).

    Args:
        in_channels: of the backbone's four maps, fine to coarse.
        num_classes: outputs.
        channels: of every level.
        dtypes: of the computation and of the parameters.
        rngs: `params` stream.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 512,
        *,
        dtypes: DTypes,
        rngs: nnx.Rngs,
    ) -> None:
        def conv(width: int, size: int) -> ConvBatchNorm:
            return ConvBatchNorm(width, channels, size, **dtypes, rngs=rngs)

        self.pyramid_pooling = PyramidPooling(in_channels[-1], channels, dtypes=dtypes, rngs=rngs)
        self.lateral_convs = nnx.List(conv(width, 1) for width in in_channels[:-1])
        self.fpn_convs = nnx.List(conv(channels, 3) for _ in in_channels[:-1])
        self.fpn_bottleneck = conv(len(in_channels) * channels, 3)
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
        levels = [conv(x, training=training) for conv, x in zip(self.lateral_convs, maps[:-1], strict=True)]
        levels.append(self.pyramid_pooling(maps[-1], training=training))
        sizes = [(level.shape[1], level.shape[2]) for level in levels]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + ops.resize_bilinear(levels[i], sizes[i - 1])
        fine = [conv(x, training=training) for conv, x in zip(self.fpn_convs, levels[:-1], strict=True)]
        fine.append(levels[-1])
        return self.classifier(self.fpn_bottleneck.on_resized(fine, training=training), rngs)
