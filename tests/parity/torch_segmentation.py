"""Semantic FPN and UPerNet in PyTorch, as functions of a state dict with mmsegmentation's names.

Written from mmsegmentation's `FPN`, `FPNHead`, `UPerHead` and `FCNHead` with upstream's configurations, without our
models' code. Maps are [B, C, H, W]. Arithmetic has the dtype of the weights.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch.nn import functional as F

from tests.parity import torch_twins
from tests.parity.torch_twins import State

Head = Literal["upernet", "semantic_fpn"]

POOL_SCALES = (1, 2, 3, 6)
AUXILIARY_WEIGHT = 0.4
NECK_CHANNELS = 256


class Logits(NamedTuple):
    """Logits [B, K, H / 4, W / 4] of the decode head, and [B, K, H / 16, W / 16] of UPerNet's auxiliary head."""

    decode: torch.Tensor
    auxiliary: torch.Tensor | None


def forward(weights: State, images: torch.Tensor, name: str, head: Head, *, training: bool = False) -> Logits:
    """Computes the logits of a segmenter from images [B, H, W, 3]; dropout and stochastic depth never act.

    Args:
        weights: with the backbone's under `backbone.`. With `training`, its running statistics are updated in place.
        images: of the dtype of the weights.
        name: of `torch_twins.ARCHITECTURES`.
        head: the decode head.
        training: normalize by the statistics of the batch.
    """
    start = "backbone."
    backbone = {key[len(start) :]: tensor for key, tensor in weights.items() if key.startswith(start)}
    outputs = torch_twins.forward(backbone, images, name, "mask")
    return heads(weights, [outputs[f"map {i}"].permute(0, 3, 1, 2) for i in range(4)], head, training=training)


def heads(weights: State, maps: Sequence[torch.Tensor], head: Head, *, training: bool = False) -> Logits:
    """Computes the logits from the backbone's maps C2 to C5."""
    if head == "semantic_fpn":
        return Logits(_semantic_fpn(weights, _fpn(weights, maps), training), None)
    return Logits(_upernet(weights, maps, training), _fcn(weights, maps[2], training))


def resized(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resizes as mmsegmentation's `resize` with `align_corners=False` does."""
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def loss(logits: Logits, labels: torch.Tensor) -> torch.Tensor:
    """Computes the loss: cross-entropy at the labels' size, its mean over all pixels, ignored ones included."""
    total = _cross_entropy(logits.decode, labels)
    if logits.auxiliary is not None:
        total = total + AUXILIARY_WEIGHT * _cross_entropy(logits.auxiliary, labels)
    return total


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(resized(logits, labels.shape[1:]), labels, ignore_index=255, reduction="none").mean()


def _fpn(weights: State, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    laterals = [_conv(weights, f"neck.lateral_convs.{i}.conv", x) for i, x in enumerate(maps)]
    for i in (3, 2, 1):
        laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], size=laterals[i - 1].shape[2:], mode="nearest")
    return [_conv(weights, f"neck.fpn_convs.{i}.conv", x) for i, x in enumerate(laterals)]


def _semantic_fpn(weights: State, pyramid: Sequence[torch.Tensor], training: bool) -> torch.Tensor:
    total = None
    for level, x in enumerate(pyramid):
        for i in range(max(1, level)):
            # An upsampling module stands after each convolution and takes an index.
            x = _conv_module(weights, f"decode_head.scale_heads.{level}.{2 * i}", x, training)
            if level > 0:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        total = x if total is None else total + resized(x, total.shape[2:])
    return _conv(weights, "decode_head.conv_seg", total)


def _upernet(weights: State, maps: Sequence[torch.Tensor], training: bool) -> torch.Tensor:
    def module(name: str, x: torch.Tensor) -> torch.Tensor:
        return _conv_module(weights, f"decode_head.{name}", x, training)

    pooled = [maps[3]]
    for i, scale in enumerate(POOL_SCALES):
        x = module(f"psp_modules.{i}.1", F.adaptive_avg_pool2d(maps[3], scale))
        pooled.append(resized(x, maps[3].shape[2:]))
    laterals = [module(f"lateral_convs.{i}", maps[i]) for i in range(3)]
    laterals.append(module("bottleneck", torch.cat(pooled, dim=1)))
    for i in (3, 2, 1):
        laterals[i - 1] = laterals[i - 1] + resized(laterals[i], laterals[i - 1].shape[2:])
    levels = [module(f"fpn_convs.{i}", laterals[i]) for i in range(3)] + [laterals[3]]
    fused = torch.cat([levels[0], *(resized(x, levels[0].shape[2:]) for x in levels[1:])], dim=1)
    return _conv(weights, "decode_head.conv_seg", module("fpn_bottleneck", fused))


def _fcn(weights: State, x: torch.Tensor, training: bool) -> torch.Tensor:
    return _conv(weights, "auxiliary_head.conv_seg", _conv_module(weights, "auxiliary_head.convs.0", x, training))


def _conv_module(weights: State, name: str, x: torch.Tensor, training: bool) -> torch.Tensor:
    statistics = (weights[f"{name}.bn.running_mean"], weights[f"{name}.bn.running_var"])
    affine = (weights[f"{name}.bn.weight"], weights[f"{name}.bn.bias"])
    x = _conv(weights, f"{name}.conv", x)
    return F.relu(F.batch_norm(x, *statistics, *affine, training=training, momentum=0.1, eps=1e-5))


def _conv(weights: State, name: str, x: torch.Tensor) -> torch.Tensor:
    weight = weights[f"{name}.weight"]
    return F.conv2d(x, weight, weights.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def random_weights(
    head: Head,
    dims: Sequence[int],
    num_classes: int,
    *,
    channels: int | None = None,
    auxiliary_channels: int | None = None,
    seed: int = 0,
) -> State:
    """float32 weights of a neck and heads, of which each counts: statistics, too, are far from 0 and 1.

    Args:
        head: the decode head.
        dims: channels of C2 to C5.
        num_classes: K.
        channels: of the decode head; None: upstream's, 512 or 128.
        auxiliary_channels: of UPerNet's auxiliary head; None: upstream's, 256.
        seed: of the random values.
    """
    generator = torch.Generator().manual_seed(seed)
    weights: State = {}

    def conv(name: str, out: int, into: int, kernel: int, bias: bool = True) -> None:
        weight = torch.randn((out, into, kernel, kernel), generator=generator)
        weights[f"{name}.weight"] = weight * (2 / weight[0].numel()) ** 0.5
        if bias:
            weights[f"{name}.bias"] = 0.3 * torch.randn(out, generator=generator)

    def module(name: str, out: int, into: int, kernel: int) -> None:
        conv(f"{name}.conv", out, into, kernel, bias=False)
        for leaf, mean in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0)):
            weights[f"{name}.bn.{leaf}"] = mean + 0.3 * torch.randn(out, generator=generator)
        weights[f"{name}.bn.running_var"] = 0.3 + 2 * torch.rand(out, generator=generator)

    if head == "semantic_fpn":
        width = channels or 128
        for i, dim in enumerate(dims):
            conv(f"neck.lateral_convs.{i}.conv", NECK_CHANNELS, dim, 1)
            conv(f"neck.fpn_convs.{i}.conv", NECK_CHANNELS, NECK_CHANNELS, 3)
            for k in range(max(1, i)):
                module(f"decode_head.scale_heads.{i}.{2 * k}", width, width if k else NECK_CHANNELS, 3)
    else:
        width = channels or 512
        for i in range(len(POOL_SCALES)):
            module(f"decode_head.psp_modules.{i}.1", width, dims[3], 1)
        module("decode_head.bottleneck", width, dims[3] + len(POOL_SCALES) * width, 3)
        for i in range(3):
            module(f"decode_head.lateral_convs.{i}", width, dims[i], 1)
            module(f"decode_head.fpn_convs.{i}", width, width, 3)
        module("decode_head.fpn_bottleneck", width, 4 * width, 3)
        narrower = auxiliary_channels or 256
        module("auxiliary_head.convs.0", narrower, dims[2], 3)
        conv("auxiliary_head.conv_seg", num_classes, narrower, 1)
    conv("decode_head.conv_seg", num_classes, width, 1)
    return weights
