"""The feature pyramid network (arXiv 1612.03144) of Semantic FPN and of the detectors."""

from collections.abc import Sequence

import jax
from flax import nnx

from twins_jax import ops
from twins_jax.config import DTypes
from twins_jax.layers import Conv


class FeaturePyramid(nnx.Module):
    """Maps of a backbone -> as many maps of equal channels, the finer ones with what the coarser ones know.

    Each map goes through a 1x1 convolution, its lateral one; from the coarsest on, each sum is enlarged to the nearest
    position of the next finer map and added to it; a 3x3 convolution ends each level. All have biases; no norm, no
    activation (mmseg's and mmdet's `FPN`, `necks/fpn.py`).

    Extra levels follow the coarsest: each is a 3x3 convolution of stride 2, the first on the last map itself, the next
    on the level before it (mmdet's `add_extra_convs="on_input"`, without ReLU).

    Args:
        in_channels: of the maps, fine to coarse.
        out_channels: of every level.
        extra_levels: their number.
        kernel_init: of all convolutions.
        dtypes: of the computation and of the parameters.
        rngs: `params` stream.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        *,
        extra_levels: int = 0,
        kernel_init: nnx.Initializer,
        dtypes: DTypes,
        rngs: nnx.Rngs,
    ) -> None:
        def conv(channels: int, size: int, stride: int = 1) -> Conv:
            return Conv(channels, out_channels, size, stride=stride, kernel_init=kernel_init, **dtypes, rngs=rngs)

        self.lateral_convs = nnx.List(conv(channels, 1) for channels in in_channels)
        self.fpn_convs = nnx.List(conv(out_channels, 3) for _ in in_channels)
        for i in range(extra_levels):
            self.fpn_convs.append(conv(out_channels if i else in_channels[-1], 3, stride=2))

    def __call__(self, maps: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """Computes the pyramid.

        Args:
            maps: [B, h, w, C] of any sizes, fine to coarse.

        Returns:
            Maps [B, h, w, out_channels] of the same sizes, fine to coarse, then the extra levels, each of half the size
            before it, rounded up.
        """
        levels = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            height, width = levels[i - 1].shape[1:3]
            levels[i - 1] = levels[i - 1] + ops.resize_nearest(levels[i], (height, width))
        convs = list(self.fpn_convs)
        outputs = [conv(x) for conv, x in zip(convs, levels, strict=False)]
        x = maps[-1]
        for conv in convs[len(levels) :]:
            x = conv(x)
            outputs.append(x)
        return tuple(outputs)
