"""The pyramids and heads of RetinaNet and Mask R-CNN in PyTorch, as functions of a state dict with mmdet's names.

Written from mmdet's `FPN`, `RetinaHead`, `RPNHead`, `Shared2FCBBoxHead` and `FCNMaskHead` with upstream's
configurations, without our models' code. Maps are [B, C, H, W] and regions [N, C, h, w]. Arithmetic has the dtype of
the weights.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from tests.parity import torch_twins
from tests.parity.torch_twins import State
from tests.support.mmdet_names import shapes

CHANNELS = 256
HIDDEN = 1024


def maps(weights: State, images: torch.Tensor, name: str) -> list[torch.Tensor]:
    """Computes the backbone's maps C2 to C5 of images [B, H, W, 3]; its weights are under `backbone.`."""
    start = "backbone."
    backbone = {key[len(start) :]: tensor for key, tensor in weights.items() if key.startswith(start)}
    outputs = torch_twins.forward(backbone, images, name, "zero")
    return [outputs[f"map {i}"].permute(0, 3, 1, 2) for i in range(4)]


def retinanet_pyramid(weights: State, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Computes P3 to P7 from C2 to C5."""
    levels = _fpn(weights, maps[1:])
    levels.append(_conv(weights, "neck.fpn_convs.3.conv", maps[3], stride=2))
    levels.append(_conv(weights, "neck.fpn_convs.4.conv", levels[-1], stride=2))
    return levels


def mask_rcnn_pyramid(weights: State, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Computes P2 to P6 from C2 to C5."""
    levels = _fpn(weights, maps)
    return [*levels, F.max_pool2d(levels[-1], kernel_size=1, stride=2)]


def _fpn(weights: State, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    laterals = [_conv(weights, f"neck.lateral_convs.{i}.conv", x) for i, x in enumerate(maps)]
    for i in range(len(laterals) - 1, 0, -1):
        laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], size=laterals[i - 1].shape[2:], mode="nearest")
    return [_conv(weights, f"neck.fpn_convs.{i}.conv", x) for i, x in enumerate(laterals)]


def retina_head(weights: State, pyramid: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Computes logits [B, 9 K, h, w] and deltas [B, 36, h, w] of each level."""

    def run(x: torch.Tensor, tower: str, last: str) -> torch.Tensor:
        for i in range(4):
            x = F.relu(_conv(weights, f"bbox_head.{tower}.{i}.conv", x))
        return _conv(weights, f"bbox_head.{last}", x)

    return [(run(x, "cls_convs", "retina_cls"), run(x, "reg_convs", "retina_reg")) for x in pyramid]


def rpn_head(weights: State, pyramid: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Computes logits [B, 3, h, w] and deltas [B, 12, h, w] of each level."""
    hidden = [F.relu(_conv(weights, "rpn_head.rpn_conv", x)) for x in pyramid]
    return [(_conv(weights, "rpn_head.rpn_cls", x), _conv(weights, "rpn_head.rpn_reg", x)) for x in hidden]


def box_head(weights: State, regions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes logits [N, K + 1] and deltas [N, 4 K] of regions [N, 256, 7, 7]."""
    x = regions.flatten(1)
    for i in range(2):
        x = F.relu(_linear(weights, f"roi_head.bbox_head.shared_fcs.{i}", x))
    return _linear(weights, "roi_head.bbox_head.fc_cls", x), _linear(weights, "roi_head.bbox_head.fc_reg", x)


def mask_head(weights: State, regions: torch.Tensor) -> torch.Tensor:
    """Computes logits [N, K, 28, 28] of regions [N, 256, 14, 14]."""
    name = "roi_head.mask_head"
    x = regions
    for i in range(4):
        x = F.relu(_conv(weights, f"{name}.convs.{i}.conv", x))
    x = F.conv_transpose2d(x, weights[f"{name}.upsample.weight"], weights[f"{name}.upsample.bias"], stride=2)
    return _conv(weights, f"{name}.conv_logits", F.relu(x))


def _conv(weights: State, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    weight = weights[f"{name}.weight"]
    return F.conv2d(x, weight, weights[f"{name}.bias"], stride=stride, padding=weight.shape[-1] // 2)


def _linear(weights: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def random_weights(head: str, dims: Sequence[int], num_classes: int, seed: int = 0) -> State:
    """float32 weights of a neck and heads, of sizes that keep activations near 1.

    Args:
        head: "retinanet" or "mask_rcnn".
        dims: channels of C2 to C5.
        num_classes: K.
        seed: of the random values.
    """
    generator = torch.Generator().manual_seed(seed)
    weights: State = {}
    for name, shape in shapes(head, dims, num_classes, CHANNELS, HIDDEN).items():
        values = torch.randn(shape, generator=generator)
        # Of a transposed convolution one tap makes each output, and its first axis is that of the inputs.
        fan_in = shape[0] if "upsample" in name else values[0].numel()
        weights[name] = values * (2 / fan_in) ** 0.5 if len(shape) > 1 else 0.3 * values
    return weights
