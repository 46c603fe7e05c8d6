"""The heads of upstream's segmentation in PyTorch, on a state dict by its own names: the truth of `--verify`.

They follow mmsegmentation's `UPerHead`, `FCNHead`, `FPN` and `FPNHead` in evaluation: BatchNorm takes its running
statistics, and dropout does nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

State = Mapping[str, Any]
"""name -> tensor, all of the maps' dtype."""


def upernet(state: State, maps: Sequence[Any]) -> list[Any]:
    """Computes UPerNet's logits [B, K, h, w] of four maps [B, C, h, w], and those of its auxiliary head."""
    from torch.nn import functional

    head = "decode_head"
    last = maps[3]
    pooled = [
        _conv_module(state, f"{head}.psp_modules.{i}.1", functional.adaptive_avg_pool2d(last, bins))
        for i, bins in enumerate((1, 2, 3, 6))
    ]
    pyramid = _concatenate([last, *(_resize(x, last) for x in pooled)])
    laterals = [_conv_module(state, f"{head}.lateral_convs.{i}", x) for i, x in enumerate(maps[:3])]
    laterals.append(_conv_module(state, f"{head}.bottleneck", pyramid))
    for i in (3, 2, 1):
        laterals[i - 1] = laterals[i - 1] + _resize(laterals[i], laterals[i - 1])
    levels = [_conv_module(state, f"{head}.fpn_convs.{i}", x) for i, x in enumerate(laterals[:3])]
    levels.append(laterals[3])
    joined = _concatenate([levels[0], *(_resize(x, levels[0]) for x in levels[1:])])
    logits = conv(state, f"{head}.conv_seg", _conv_module(state, f"{head}.fpn_bottleneck", joined))
    auxiliary = _conv_module(state, "auxiliary_head.convs.0", maps[2])
    return [logits, conv(state, "auxiliary_head.conv_seg", auxiliary)]


def semantic_fpn(state: State, maps: Sequence[Any]) -> list[Any]:
    """Computes Semantic FPN's logits [B, K, h, w] of four maps [B, C, h, w]."""
    from torch.nn import functional

    levels = []
    for level, x in enumerate(pyramid(state, maps)):
        for step in range(max(level, 1)):
            x = _conv_module(state, f"decode_head.scale_heads.{level}.{2 * step}", x)
            if level:
                x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        levels.append(x)
    total = levels[0]
    for x in levels[1:]:
        total = total + _resize(x, total)
    return [conv(state, "decode_head.conv_seg", total)]


def pyramid(state: State, maps: Sequence[Any]) -> list[Any]:
    """Computes a feature pyramid [B, 256, h, w] of as many maps [B, C, h, w]."""
    from torch.nn import functional

    laterals = [conv(state, f"neck.lateral_convs.{i}.conv", x) for i, x in enumerate(maps)]
    for i in range(len(maps) - 1, 0, -1):
        size = laterals[i - 1].shape[2:]
        laterals[i - 1] = laterals[i - 1] + functional.interpolate(laterals[i], size=size, mode="nearest")
    return [conv(state, f"neck.fpn_convs.{i}.conv", x) for i, x in enumerate(laterals)]


def conv(state: State, name: str, x: Any, *, stride: int = 1) -> Any:
    """Computes a convolution of an odd size, padded by half of it."""
    from torch.nn import functional

    weight = state[f"{name}.weight"]
    return functional.conv2d(x, weight, state.get(f"{name}.bias"), stride=stride, padding=weight.shape[-1] // 2)


HEADS: dict[str, Callable[[State, Sequence[Any]], list[Any]]] = {"upernet": upernet, "semantic_fpn": semantic_fpn}


def _conv_module(state: State, name: str, x: Any) -> Any:
    """Mmcv's `ConvModule`: convolution, BatchNorm, ReLU."""
    from torch.nn import functional

    mean, var, weight, bias = (state[f"{name}.bn.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias"))
    return functional.batch_norm(conv(state, f"{name}.conv", x), mean, var, weight, bias, eps=1e-5).relu()


def _resize(x: Any, like: Any) -> Any:
    from torch.nn import functional

    return functional.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def _concatenate(maps: Sequence[Any]) -> Any:
    import torch

    return torch.cat(list(maps), dim=1)
