"""Detectors of few channels, whose steps take milliseconds and whose checkpoints kilobytes."""

import pytest

from train.tasks.detection import task
from twins_jax.detection import mask_rcnn
from twins_jax.detection.retinanet import RetinaHead
from twins_jax.detection.roi_heads import BoxHead, MaskHead
from twins_jax.detection.rpn import RegionProposalNetwork
from twins_jax.fpn import FeaturePyramid

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
