"""Checkpoints of segmenters as mmsegmentation writes them, and models of small heads."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flax import nnx

import twins_jax
from tests.parity import torch_segmentation
from tests.support.models import SVT, backbone, named
from twins_jax.config import VARIANTS
from twins_jax.port import infer
from twins_jax.port.convert import to_layout
from twins_jax.port.rules import TORCH_DENSE
from twins_jax.segmentation import segmenter
from twins_jax.segmentation.fcn import FCNHead
from twins_jax.segmentation.segmenter import HEADS, segmenter_config
from twins_jax.segmentation.upernet import UPerHead

State = dict[str, torch.Tensor]
NAMES = ("wall", "b\x1b[31m", "Käse", "", "sky")
IMAGES = twins_jax.SegmentationPreprocessing(96, 400, (0.5, 0.4, 0.3), (0.25, 0.3, 0.1 + 0.2))


CHANNELS = 16
"""Of UPerNet's heads, which have upstream's 512 and 256 in tests/port/test_rules.py: files are of 2 MB, not 110."""


def small_segmenters() -> Iterator[None]:
    """Lets the variant "mini" be known, and UPerNet's heads have `CHANNELS`, until it goes on."""
    infer._expected.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "mini", SVT)
        patch.setitem(HEADS, "upernet", functools.partial(UPerHead, channels=CHANNELS))
        patch.setattr(segmenter, "FCNHead", functools.partial(FCNHead, channels=CHANNELS))
        yield
    infer._expected.cache_clear()


def random_state(head: str) -> State:
    """A segmenter's state dict; those of backbones are named by our table, which test_rules.py compares with timm."""
    arrays = named(twins_jax.get_params(backbone(segmenter_config("mini"))))
    ours = to_layout({f"backbone/{path}": array for path, array in arrays.items()}, TORCH_DENSE)
    channels = {"channels": CHANNELS, "auxiliary_channels": CHANNELS} if head == "upernet" else {}
    return {
        **{name: torch.from_numpy(np.array(array, order="C")) for name, array in ours.items()},
        **torch_segmentation.random_weights(head, SVT.embed_dims, len(NAMES), **channels),
    }


LEFTOVERS = ("backbone.norm.weight", "backbone.norm.bias", "backbone.head.weight", "backbone.head.bias")


def save_as_mmcv(state: State, path: Path, meta: Any = None) -> Path:
    tracked = {name.replace("running_var", "num_batches_tracked"): torch.tensor(5) for name in state if "_var" in name}
    leftovers = {name: torch.ones((1000, 64) if "head.weight" in name else (64,)) for name in LEFTOVERS}
    meta = {"CLASSES": NAMES, "PALETTE": [[1, 2, 3]], "mmseg_version": "0.12"} if meta is None else meta
    torch.save({"meta": meta, "state_dict": state | tracked | leftovers, "optimizer": {"state": {}}}, path)
    return path


def variables(model: nnx.Module) -> dict[str, np.ndarray]:
    return named(twins_jax.get_params(model)) | named(twins_jax.get_batch_stats(model))


def assert_equal_models(found: nnx.Module, expected: nnx.Module) -> None:
    found_arrays, arrays = variables(found), variables(expected)
    assert found_arrays.keys() == arrays.keys()
    assert all(found_arrays[path].tobytes() == array.tobytes() for path, array in arrays.items())
