"""The PyTorch models that `backends` measures beside this package's: timm's, and transformers' UPerNet on timm's."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from twins_jax.config import variant_config
from twins_jax.port.timm_models import import_timm

from .backends import AUXILIARY_WEIGHT, IMAGE_CLASSES, PIXEL_CLASSES, Case


class TorchModel(NamedTuple):
    """A model, and what trains it.

    Attributes:
        module: images [B, 3, H, W] -> logits; in training, of all heads.
        labels: of a batch of random images.
        loss: (the module's outputs in training, labels) -> [].
    """

    module: nn.Module
    labels: torch.Tensor
    loss: Callable[[Any, torch.Tensor], torch.Tensor]


def make_torch_model(case: Case) -> TorchModel:
    """Makes the model of a case, with random parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        timm = import_timm()
    if case.head == "none":
        labels = torch.randint(IMAGE_CLASSES, (case.batch,))
        return TorchModel(
            timm.create_model(case.variant, num_classes=IMAGE_CLASSES), labels, nn.functional.cross_entropy
        )
    labels = torch.randint(PIXEL_CLASSES, (case.batch, case.size, case.size))
    return TorchModel(UPerNet(timm.create_model(case.variant, num_classes=0), case.variant), labels, _loss_of_both)


class UPerNet(nn.Module):
    """transformers' UPerNet heads on timm's Twins, with upstream's norm at the end of each stage of SVT.

    timm does not mask the padding of windows, as this package's segmenter does.
    """

    def __init__(self, backbone: Any, variant: str) -> None:
        from transformers import UperNetConfig
        from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

        super().__init__()
        model = variant_config(variant)
        dims = list(model.embed_dims)
        self.backbone = backbone
        self.backbone.norm = nn.Identity()  # after the last stage, of a classifier
        has_norms = model.window_size is not None
        self.stage_norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-6) if has_norms else nn.Identity() for dim in dims)
        config = UperNetConfig(num_labels=PIXEL_CLASSES, auxiliary_in_channels=dims[2])
        self.decode_head = UperNetHead(config, dims)
        self.auxiliary_head = UperNetFCNHead(config, dims)

    def forward(self, images: torch.Tensor) -> Any:
        """Logits [B, K, H, W] of images [B, 3, H, W]; in training those of both heads."""
        x, maps = images, []
        stages = zip(
            self.backbone.patch_embeds, self.backbone.blocks, self.backbone.pos_block, self.stage_norms, strict=True
        )
        for embed, blocks, peg, norm in stages:
            x, size = embed(x)
            for i, block in enumerate(blocks):
                x = block(x, size)
                if i == 0:
                    x = peg(x, size)
            x = norm(x).reshape(x.shape[0], *size, -1).permute(0, 3, 1, 2).contiguous()
            maps.append(x)
        heads = (self.decode_head, self.auxiliary_head) if self.training else (self.decode_head,)
        size = images.shape[2:]
        logits = [
            nn.functional.interpolate(head(maps), size=size, mode="bilinear", align_corners=False) for head in heads
        ]
        return logits if self.training else logits[0]


def _loss_of_both(logits: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    decode, auxiliary = (nn.functional.cross_entropy(x, labels) for x in logits)
    return decode + AUXILIARY_WEIGHT * auxiliary
