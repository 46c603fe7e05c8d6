"""The optimizer's settings of classification: schedule, weight decay and layer-wise decay."""

import dataclasses
import importlib
import math
from types import ModuleType
from typing import Any

import jax
import pytest
from flax import nnx, traverse_util

import twins_jax
from train.config import RunConfig
from train.optim import decay_mask, make_schedule
from train.recipes import digits, imagenet_svt_small
from train.tasks.classification.config import ClassificationOptimConfig
from twins_jax.port.rules import TORCH

Tree = dict[str, Any]


@pytest.mark.parametrize(
    ("config", "examples", "peak", "warmup", "total"),
    [
        (imagenet_svt_small(), 1_281_167, 1e-3, 6256, 375342),  # 5e-4 x 1024 / 512
        (dataclasses.replace(digits(), steps=50, batch_size=8), 1442, 8e-3 * 8 / 512, 49, 50),
        (
            dataclasses.replace(digits(), steps=40, optim=ClassificationOptimConfig(warmup_epochs=0)),
            1442,
            5e-4 * 64 / 512,
            0,
            40,
        ),
    ],
    ids=["imagenet", "short", "no-warmup"],
)
def test_schedule(config: RunConfig, examples: int, peak: float, warmup: int, total: int) -> None:
    schedule = jax.jit(make_schedule(config, examples))
    for step in sorted({0, 1, warmup // 2, warmup - 1, warmup, (warmup + total) // 2, total - 1, total} - {-1}):
        if step < warmup:
            expected = 1e-6 + (peak - 1e-6) * step / warmup
        else:
            cosine = math.cos(math.pi * (step - warmup) / (total - warmup))
            expected = 1e-5 + (peak - 1e-5) * (1 + cosine) / 2
        # A handful of float32 operations on values up to the peak.
        assert float(schedule(step)) == pytest.approx(expected, abs=4 * 2**-23 * peak), step


def shapes(variant: str) -> Tree:
    return twins_jax.get_params(nnx.eval_shape(lambda: twins_jax.create_model(variant, rngs=nnx.Rngs(0))))


def timm_groups(timm: ModuleType, variant: str, layer_decay: float) -> dict[str, tuple[float, float]]:
    """(learning-rate scale, weight decay) that timm gives each parameter, by our paths."""
    torch = importlib.import_module("torch")
    param_groups_layer_decay = importlib.import_module("timm.optim").param_groups_layer_decay

    with torch.device("meta"):
        model = timm.create_model(variant)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = param_groups_layer_decay(
        model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=layer_decay
    )
    found = {}
    for group in groups:
        for parameter in group["params"]:
            match = TORCH.to_ours(names[id(parameter)])
            assert match is not None
            found[match.name] = (group["lr_scale"], group["weight_decay"])
    return found


@pytest.mark.parametrize("variant", ["twins_pcpvt_small", "twins_svt_small"])
def test_groups_are_timms(timm: ModuleType, variant: str) -> None:
    params = shapes(variant)
    config = ClassificationOptimConfig(layer_decay=0.75)
    scale = config.update_scales(variant)
    assert scale is not None
    expected = timm_groups(timm, variant, 0.75)
    decayed = traverse_util.flatten_dict(decay_mask(config, params), sep="/")
    assert {name: (scale(name), 0.05 if decayed[name] else 0.0) for name in decayed} == expected


def test_what_is_decayed_by_name() -> None:
    # Upstream and timm: none on biases, norms, 1-d parameters and pos_block.*, which is the PEG here.
    mask = decay_mask(ClassificationOptimConfig(), shapes("twins_svt_tiny"))
    for name, is_decayed in traverse_util.flatten_dict(mask, sep="/").items():
        assert is_decayed == (name.endswith("/kernel") and "/peg/" not in name), name


def test_no_layer_decay_adds_no_part_to_the_optimizer() -> None:
    # Its state in checkpoints has an entry for each part.
    assert ClassificationOptimConfig(layer_decay=1.0).update_scales("twins_svt_tiny") is None
