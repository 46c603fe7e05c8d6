"""The classifier of positions that ends every head, and the auxiliary head of UPerNet."""

import jax
from flax import nnx

from twins_jax.config import DTypes
from twins_jax.layers import Conv, ConvBatchNorm, drop

DROPOUT_RATE = 0.1
"""Of whole channels, in training (upstream's `segmentation/configs/_base_/models`)."""


class PixelClassifier(nnx.Module):
    """Dropout of whole channels and a 1x1 convolution: [B, h, w, C] -> logits [B, h, w, num_classes].

    The kernel starts from a normal distribution of deviation 0.01 (mmseg's `BaseDecodeHead.init_weights`).
    """

    def __init__(self, channels: int, num_classes: int, *, dtypes: DTypes, rngs: nnx.Rngs) -> None:
        self.dropout = nnx.Dropout(DROPOUT_RATE, broadcast_dims=(1, 2))
        init = nnx.initializers.normal(0.01)
        self.conv = Conv(channels, num_classes, 1, kernel_init=init, **dtypes, rngs=rngs)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.conv(drop(self.dropout, x, rngs))


class FCNHead(nnx.Module):
    """One 3x3 convolution and a classifier of positions on one map: UPerNet's second loss (mmseg's `FCNHead`)."""

    def __init__(
        self, in_channels: int, num_classes: int, channels: int = 256, *, dtypes: DTypes, rngs: nnx.Rngs
    ) -> None:
        self.conv = ConvBatchNorm(in_channels, channels, 3, **dtypes, rngs=rngs)
        self.classifier = PixelClassifier(channels, num_classes, dtypes=dtypes, rngs=rngs)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.classifier(self.conv(x, training=rngs is not None), rngs)
