"""Checkpoints of detectors as mmdet writes them, and models of small heads."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import twins_jax
from tests.support.mmdet_names import shapes
from tests.support.models import SVT, backbone, named
from twins_jax import from_weights
from twins_jax.config import VARIANTS
from twins_jax.detection import mask_rcnn, retinanet
from twins_jax.detection.detector import detector_config
from twins_jax.port import infer
from twins_jax.port.convert import to_layout
from twins_jax.port.rules import TORCH_DETECTION

State = dict[str, torch.Tensor]
HEADS = ("retinanet", "mask_rcnn")
NAMES = ("RBC", "b\x1b[31m", "Käse")
LEFTOVERS = ("backbone.norm.weight", "backbone.norm.bias", "backbone.head.weight", "backbone.head.bias")

CHANNELS, HIDDEN = 16, 24
"""Of the small pyramid and its heads, and of the small box head; upstream's are 256 and 1024."""

MICRO = dataclasses.replace(SVT, depths=(1, 1, 1, 1))
"""The fewest blocks, one each stage: no GSA, which the tests of classifiers have."""


def small_detectors() -> Iterator[None]:
    """Lets the variant "micro" be known, and detectors be small, until it goes on."""
    width = {"channels": CHANNELS, "in_channels": CHANNELS}
    small = {
        "FeaturePyramid": {"out_channels": CHANNELS},
        "RetinaHead": width,
        "RegionProposalNetwork": width,
        "BoxHead": {"in_channels": CHANNELS, "hidden": HIDDEN},
        "MaskHead": width,
    }
    infer._expected.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "micro", MICRO)
        for module in (retinanet, mask_rcnn, from_weights):
            for name in small.keys() & vars(module).keys():
                patch.setattr(module, name, functools.partial(getattr(module, name), **small[name]))
        yield
    infer._expected.cache_clear()


def random_state(head: str) -> State:
    """A detector's state dict; those of backbones are named by our table, which test_rules.py compares with timm."""
    arrays = named(twins_jax.get_params(backbone(detector_config("micro"))))
    ours = to_layout({f"backbone/{path}": array for path, array in arrays.items()}, TORCH_DETECTION)
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.from_numpy(np.array(array, order="C")) for name, array in ours.items()}
    for name, shape in shapes(head, MICRO.embed_dims, len(NAMES), CHANNELS, HIDDEN).items():
        values = torch.randn(shape, generator=generator)
        state[name] = values * (2 / values[0].numel()) ** 0.5 if len(shape) > 1 else 0.3 * values
    return state


def save_as_mmcv(state: State, path: Path, meta: Any = None) -> Path:
    """Writes what mmcv's runner does; a backbone of upstream's has a classifier's ends, which nothing uses."""
    leftovers = {name: torch.ones((1000, 64) if "head.weight" in name else (64,)) for name in LEFTOVERS}
    meta = {"CLASSES": NAMES, "mmdet_version": "2.8.0"} if meta is None else meta
    torch.save({"meta": meta, "state_dict": state | leftovers, "optimizer": {"state": {}}}, path)
    return path
