"""Small detectors, whose steps take milliseconds and whose checkpoints kilobytes."""

import jax
import pytest
from flax import nnx

from tests.support.models import random_module
from train.tasks.detection import task
from twins_jax import TwinsConfig
from twins_jax.detection import detector, mask_rcnn, retinanet, roi_heads
from twins_jax.detection.retinanet import RetinaHead
from twins_jax.detection.roi_heads import BoxHead, MaskHead
from twins_jax.detection.rpn import RegionProposalNetwork
from twins_jax.fpn import FeaturePyramid
from twins_jax.layers import PatchConv

CHANNELS = 16


def narrow(patch: pytest.MonkeyPatch) -> None:
    """Makes detectors of `CHANNELS` in place of 256, with fewer proposals."""
    patch.setattr(FeaturePyramid.__init__, "__defaults__", (CHANNELS,))
    for head in (RetinaHead, RegionProposalNetwork, BoxHead, MaskHead):
        defaults = head.__init__.__defaults__ or ()
        patch.setattr(head.__init__, "__defaults__", (CHANNELS,) * len(defaults))
        if "in_channels" in (keywords := head.__init__.__kwdefaults__ or {}):
            patch.setattr(head.__init__, "__kwdefaults__", {**keywords, "in_channels": CHANNELS})
    patch.setattr(task, "PROPOSALS_PER_LEVEL", 64)
    patch.setattr(task, "PROPOSALS", 64)
    patch.setattr(mask_rcnn, "MAX_PROPOSALS", 64)


class Patches(nnx.Module):
    """A backbone without blocks, to compile less: each map is a convolution of patches of the images."""

    def __init__(self, config: TwinsConfig, *, rngs: nnx.Rngs) -> None:
        dims = enumerate(config.embed_dims)
        self.convs = nnx.List(PatchConv(3, dim, 4 * 2**stage, **config.dtypes, rngs=rngs) for stage, dim in dims)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> tuple[jax.Array, ...]:
        del rngs
        return tuple(conv(images) for conv in self.convs)


def small(patch: pytest.MonkeyPatch) -> None:
    """Makes narrow detectors of `Patches`, whose scores are far apart, and takes every box for an answer.

    Fresh heads score all boxes alike to five digits: rounding would decide their order, and which of them are sampled.
    """
    narrow(patch)
    patch.setattr(detector, "TwinsBackbone", Patches)
    create = task.DetectionTask.create_model
    patch.setattr(task.DetectionTask, "create_model", lambda self, _: random_module(lambda: create(self, nnx.Rngs(0))))
    patch.setattr(retinanet, "SCORE_THRESHOLD", 0.0)
    patch.setattr(roi_heads, "SCORE_THRESHOLD", 0.0)
