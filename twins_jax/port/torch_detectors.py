"""The necks and heads of upstream's detection in PyTorch, on a state dict by its own names: the truth of `--verify`.

They follow mmdet's `FPN`, `RetinaHead`, `RPNHead`, `Shared2FCBBoxHead` and `FCNMaskHead`, and mmcv's `RoIAlign`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from twins_jax.port.torch_heads import State, conv, pyramid

SIDES = (15.75, 17.5, 18.375)
"""Sides of `proposals` in cells of their level: 14 times 1.125, 1.25 and 1.3125. The sides of RoIAlign's bins are then
the same in float32 whether it divides by 7 and 14 or multiplies by their inverses: both sides sample one place."""

OFFSET = 1 / 128
"""Of all proposals in cells: no sample is at the edge beyond which it counts as 0."""

PER_LEVEL = 2
"""Proposals of each image on each of the four levels."""


def proposals(batch: int, height: int, width: int) -> np.ndarray:
    """Draws the regions that Mask R-CNN's heads look at, in place of those that its own proposals would be.

    Args:
        batch: of images.
        height: of the map at stride 4.
        width: of the map at stride 4.

    Returns:
        float32 [batch, N, 4]: x1, y1, x2, y2 in pixels. Centers are in the image.
    """
    rng = np.random.default_rng(0)
    strides = np.repeat((4, 8, 16, 32), PER_LEVEL)[:, None]
    shape = (batch, len(strides), 2)
    centers = rng.integers((4 * width, 4 * height), size=shape) + strides * OFFSET
    sides = strides * rng.choice(SIDES, size=shape)
    return np.concatenate([centers - sides / 2, centers + sides / 2], axis=-1).astype(np.float32)


def retinanet(state: State, maps: Sequence[Any]) -> list[Any]:
    """Computes RetinaNet's outputs of four maps [B, C, h, w].

    Returns:
        P3 to P7, [B, 256, h, w]; logits [B, positions of all levels, 9 K] and deltas [B, positions, 36].
    """
    levels = pyramid(state, maps[1:])
    extra = maps[3]
    for i in (3, 4):
        extra = conv(state, f"neck.fpn_convs.{i}.conv", extra, stride=2)
        levels.append(extra)

    def tower(x: Any, name: str) -> Any:
        for i in range(4):
            x = conv(state, f"bbox_head.{name}_convs.{i}.conv", x).relu()
        return conv(state, f"bbox_head.retina_{name}", x)

    return [*levels, *(_joined([tower(x, name) for x in levels]) for name in ("cls", "reg"))]


def mask_rcnn(state: State, maps: Sequence[Any]) -> list[Any]:
    """Computes Mask R-CNN's outputs of four maps [B, C, h, w].

    Returns:
        P2 to P6, [B, 256, h, w]; of the region proposal network logits [B, positions of all levels, 3] and deltas
        [B, positions, 12]; of `proposals` logits [B, N, K + 1], deltas [B, N, 4 K] and masks [B, N, 28, 28, K].
    """
    from torch.nn import functional

    levels = pyramid(state, maps)
    levels.append(levels[-1][:, :, ::2, ::2])
    hidden = [conv(state, "rpn_head.rpn_conv", x).relu() for x in levels]
    dense = [_joined([conv(state, f"rpn_head.rpn_{name}", x) for x in hidden]) for name in ("cls", "reg")]

    def linear(name: str, x: Any) -> Any:
        name = f"roi_head.bbox_head.{name}"
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    regions = proposals(len(maps[0]), *maps[0].shape[2:])
    batch, count, _ = regions.shape
    x = _roi_align(levels, regions, 7).flatten(1)
    for i in range(2):
        x = linear(f"shared_fcs.{i}", x).relu()
    boxes = [linear(name, x).unflatten(0, (batch, count)) for name in ("fc_cls", "fc_reg")]

    root = "roi_head.mask_head"
    x = _roi_align(levels, regions, 14)
    for i in range(4):
        x = conv(state, f"{root}.convs.{i}.conv", x).relu()
    weight, bias = (state[f"{root}.upsample.{leaf}"] for leaf in ("weight", "bias"))
    x = conv(state, f"{root}.conv_logits", functional.conv_transpose2d(x, weight, bias, stride=2).relu())
    return [*levels, *dense, *boxes, x.permute(0, 2, 3, 1).unflatten(0, (batch, count))]


HEADS: dict[str, Callable[[State, Sequence[Any]], list[Any]]] = {"retinanet": retinanet, "mask_rcnn": mask_rcnn}


def _joined(levels: Sequence[Any]) -> Any:
    """Joins the positions of levels: [B, C, h, w] each -> [B, positions of all, C]."""
    import torch

    return torch.cat([x.flatten(2).mT for x in levels], dim=1)


def _roi_align(levels: Sequence[Any], regions: np.ndarray, side: int) -> Any:
    """Computes mmcv's aligned `RoIAlign` of sampling ratio 0, of each region on the level that mmdet gives it.

    Args:
        levels: P2 to P5, and what follows, [B, C, h, w].
        regions: [B, N, 4].
        side: of the results.

    Returns:
        [B * N, C, side, side]. As in mmcv, positions are of the maps' dtype.
    """
    import torch

    aligned = []
    for image, boxes in enumerate(levels[0].new_tensor(regions)):
        for box in boxes:
            size = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
            level = min(max(math.floor(math.log2(size / 56 + 1e-6)), 0), 3)
            features = levels[level][image]
            left, top, right, bottom = box * 2.0 ** -(level + 2) - 0.5
            rows = _weights(top, bottom, side, features.shape[1])
            columns = _weights(left, right, side, features.shape[2])
            aligned.append(torch.einsum("chw,ph,qw->cpq", features, rows, columns))
    return torch.stack(aligned)


def _weights(start: Any, end: Any, bins: int, size: int) -> Any:
    """Returns the weights [bins, size] that the cells of one axis have in the mean of each bin between two ends."""
    import torch

    step = (end - start) / bins
    count = math.ceil(step)
    index, sample, cells = (torch.arange(length, dtype=start.dtype) for length in (bins, count, size))
    position = start + index[:, None] * step + (sample + 0.5) * step / count  # [bins, count]
    is_near = (position >= -1) & (position <= size)
    position = position.clamp(0, size - 1)
    shares = (1 - (position[..., None] - cells).abs()).clamp(min=0)  # of the two cells beside each position
    return (shares * is_near[..., None]).mean(dim=1)
