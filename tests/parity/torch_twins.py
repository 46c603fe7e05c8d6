"""Twins in PyTorch, as functions of a state dict with upstream's names: the truth for every option of our models.

Written from upstream's `gvt.py` (classification, segmentation, detection), without timm and without our models' code.
Maps are [B, C, H, W] between stages and tokens [B, H * W, C] within them, as upstream's are. Arithmetic has the dtype
of the weights.
"""

from typing import Literal, NamedTuple

import torch
from torch.nn import functional as F

State = dict[str, torch.Tensor]
Size = tuple[int, int]
Padding = Literal["zero", "mask"]


class Architecture(NamedTuple):
    """The numbers that the weights' shapes do not give, and that random weights need.

    Attributes:
        dims: channels of each stage.
        heads: of each stage's attentions.
        mlp_ratios: hidden width of the MLPs over the stage's channels.
        depths: blocks of each stage.
        window: side of LSA's windows, in blocks 0, 2, ... of a stage; None: all blocks are GSA.
    """

    dims: tuple[int, ...]
    heads: tuple[int, ...]
    mlp_ratios: tuple[int, ...]
    depths: tuple[int, ...]
    window: int | None


ARCHITECTURES = {
    "twins_pcpvt_small": Architecture((64, 128, 320, 512), (1, 2, 5, 8), (8, 8, 4, 4), (3, 4, 6, 3), None),
    "twins_svt_small": Architecture((64, 128, 256, 512), (2, 4, 8, 16), (4, 4, 4, 4), (2, 2, 10, 4), 7),
    "twins_svt_tiny": Architecture((32, 64, 128, 256), (1, 2, 4, 8), (4, 4, 4, 4), (2, 2, 2, 2), 7),
}
RATIOS = (8, 4, 2, 1)
"""GSA's sub-sampling by stage, alike in all of them."""


def forward(weights: State, images: torch.Tensor, name: str, padding: Padding) -> dict[str, torch.Tensor]:
    """The four maps [B, H, W, C], and of a model with a final norm its logits [B, K], or without head features [B, C].

    Args:
        weights: the final norm, the head and the stage norms act where they are in it.
        images: [B, H, W, in_channels].
        name: of `ARCHITECTURES`.
        padding: the treatment of maps that LSA's windows do not tile.
    """
    model = ARCHITECTURES[name]
    x = images.permute(0, 3, 1, 2)
    outputs = {}
    for stage in range(4):
        embed = f"patch_embeds.{stage}"
        x = F.conv2d(x, **_of(weights, f"{embed}.proj"), stride=4 if stage == 0 else 2)
        size = (x.shape[2], x.shape[3])
        x = _norm(weights, f"{embed}.norm", x.flatten(2).mT, eps=1e-5)
        for block in range(model.depths[stage]):
            window = model.window if block % 2 == 0 else None
            x = _block(weights, f"blocks.{stage}.{block}", x, size, model.heads[stage], RATIOS[stage], window, padding)
            if block == 0:
                x = _peg(weights, f"pos_block.{stage}.proj.0", x, size)
        if f"norm_list.{stage}.weight" in weights:  # in the main path: the next stage reads the normed map
            x = _norm(weights, f"norm_list.{stage}", x, eps=1e-6)
        x = x.mT.unflatten(2, size)
        outputs[f"map {stage}"] = x.permute(0, 2, 3, 1)
    if "norm.weight" in weights:
        pooled = _norm(weights, "norm", x.flatten(2).mT, eps=1e-6).mean(dim=1)
        outputs["logits"] = _linear(weights, "head", pooled) if "head.weight" in weights else pooled
    return outputs


def _block(
    weights: State, name: str, x: torch.Tensor, size: Size, heads: int, ratio: int, window: int | None, padding: Padding
) -> torch.Tensor:
    normed = _norm(weights, f"{name}.norm1", x, eps=1e-6)
    if window is None:
        x = x + _gsa(weights, f"{name}.attn", normed, size, heads, ratio)
    else:
        x = x + _lsa(weights, f"{name}.attn", normed, size, heads, window, padding)
    hidden = _linear(weights, f"{name}.mlp.fc1", _norm(weights, f"{name}.norm2", x, eps=1e-6))
    return x + _linear(weights, f"{name}.mlp.fc2", F.gelu(hidden))  # exact: torch's default has erf


def _lsa(
    weights: State, name: str, x: torch.Tensor, size: Size, heads: int, window: int, padding: Padding
) -> torch.Tensor:
    """Upstream's `GroupAttention.forward_padding` (detection) and `forward_mask` (segmentation)."""
    (height, width), (batch, _, dim) = size, x.shape
    pad_bottom, pad_right = -height % window, -width % window
    x = F.pad(x.unflatten(1, size), (0, 0, 0, pad_right, 0, pad_bottom))  # before the projection, whose bias it gets
    rows, columns = (height + pad_bottom) // window, (width + pad_right) // window

    def in_windows(x: torch.Tensor) -> torch.Tensor:  # [.., H, W, C] -> [.., rows * columns, window * window, C]
        x = x.reshape(len(x), rows, window, columns, window, -1).transpose(2, 3)
        return x.reshape(len(x), rows * columns, window * window, -1)

    qkv = _linear(weights, f"{name}.qkv", in_windows(x))
    query, key, value = qkv.unflatten(-1, (3, heads, dim // heads)).permute(3, 0, 1, 4, 2, 5)
    scores = query @ key.mT * (dim // heads) ** -0.5  # [B, windows, heads, window * window, window * window]
    if padding == "mask":
        mask = x.new_zeros(1, height + pad_bottom, width + pad_right)
        # As upstream wrote it. With nothing to pad, -0 is the first index: the slice is the whole map.
        mask[:, -pad_bottom:, :] = 1
        mask[:, :, -pad_right:] = 1
        mask = in_windows(mask[..., None])[..., 0]
        difference = mask[:, :, None, :] - mask[:, :, :, None]
        scores = scores + torch.where(difference != 0, -1000.0, 0.0).to(scores.dtype)[:, :, None]
    x = (scores.softmax(-1) @ value).transpose(2, 3).reshape(batch, rows, columns, window, window, dim)
    x = x.transpose(2, 3).reshape(batch, rows * window, columns * window, dim)[:, :height, :width]
    return _linear(weights, f"{name}.proj", x.reshape(batch, height * width, dim))


def _gsa(weights: State, name: str, x: torch.Tensor, size: Size, heads: int, ratio: int) -> torch.Tensor:
    batch, count, dim = x.shape
    query = _linear(weights, f"{name}.q", x).unflatten(-1, (heads, -1)).transpose(1, 2)
    if ratio > 1:
        x = F.conv2d(x.mT.unflatten(2, size), **_of(weights, f"{name}.sr"), stride=ratio).flatten(2).mT
        x = _norm(weights, f"{name}.norm", x, eps=1e-5)
    key, value = _linear(weights, f"{name}.kv", x).unflatten(-1, (2, heads, dim // heads)).permute(2, 0, 3, 1, 4)
    attention = (query @ key.mT * (dim // heads) ** -0.5).softmax(-1)
    return _linear(weights, f"{name}.proj", (attention @ value).transpose(1, 2).reshape(batch, count, dim))


def _peg(weights: State, name: str, x: torch.Tensor, size: Size) -> torch.Tensor:
    x = x.mT.unflatten(2, size)
    return (F.conv2d(x, **_of(weights, name), padding=1, groups=x.shape[1]) + x).flatten(2).mT


def _linear(weights: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, **_of(weights, name))


def _norm(weights: State, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], **_of(weights, name), eps=eps)


def _of(weights: State, name: str) -> State:
    return {leaf: weights[f"{name}.{leaf}"] for leaf in ("weight", "bias")}


def random_weights(
    name: str, *, in_channels: int = 3, num_classes: int | None = None, stage_norms: bool = False, seed: int = 0
) -> State:
    """float32 weights of which each counts: no bias is near 0, no scale near 1, and activations stay near 1.

    Args:
        name: of `ARCHITECTURES`.
        in_channels: of the images.
        num_classes: of the head; 0: a final norm without a head; None: neither.
        stage_norms: whether to add a `norm_list`.
        seed: of the random values.
    """
    model = ARCHITECTURES[name]
    generator = torch.Generator().manual_seed(seed)
    weights: State = {}

    def layer(name: str, *shape: int) -> None:
        """A linear layer or a convolution, or a norm if the weight has one dimension."""
        noise = torch.randn(shape, generator=generator)
        weights[f"{name}.weight"] = 1 + 0.3 * noise if len(shape) == 1 else noise * noise[0].numel() ** -0.5
        weights[f"{name}.bias"] = 0.3 * torch.randn(shape[0], generator=generator)

    for stage, (dim, mlp_ratio, depth) in enumerate(zip(model.dims, model.mlp_ratios, model.depths, strict=True)):
        patch, before = (2, model.dims[stage - 1]) if stage else (4, in_channels)
        layer(f"patch_embeds.{stage}.proj", dim, before, patch, patch)
        layer(f"patch_embeds.{stage}.norm", dim)
        layer(f"pos_block.{stage}.proj.0", dim, 1, 3, 3)
        for i in range(depth):
            block = f"blocks.{stage}.{i}"
            layer(f"{block}.norm1", dim)
            if model.window is not None and i % 2 == 0:
                layer(f"{block}.attn.qkv", 3 * dim, dim)
            else:
                layer(f"{block}.attn.q", dim, dim)
                layer(f"{block}.attn.kv", 2 * dim, dim)
                if RATIOS[stage] > 1:
                    layer(f"{block}.attn.sr", dim, dim, RATIOS[stage], RATIOS[stage])
                    layer(f"{block}.attn.norm", dim)
            layer(f"{block}.attn.proj", dim, dim)
            layer(f"{block}.norm2", dim)
            layer(f"{block}.mlp.fc1", mlp_ratio * dim, dim)
            layer(f"{block}.mlp.fc2", dim, mlp_ratio * dim)
        if stage_norms:
            layer(f"norm_list.{stage}", dim)
    if num_classes is not None:
        layer("norm", model.dims[-1])
        if num_classes:
            layer("head", num_classes, model.dims[-1])
    return weights
