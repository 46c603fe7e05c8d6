"""Features, blocks' outputs and attention weights of classifiers against timm's, which hooks record."""

import dataclasses
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx, traverse_util

import twins_jax
from tests.parity.reference import Comparison, compare, randomize
from tests.support.compilation import fast_compilation
from tests.support.models import PCPVT, SVT
from tests.support.timm_twins import make_timm
from twins_jax.port.rules import TORCH

LOOKED_AT = {"svt": (0, 1), "pcpvt": (0, 2)}  # blocks: LSA and GSA; GSA of two ratios
CONFIGS = {"svt": SVT, "pcpvt": PCPVT}


def to_params(module: torch.nn.Module) -> dict[str, Any]:
    params = {}
    for name, tensor in module.state_dict().items():
        match = TORCH.to_ours(name)
        assert match is not None
        params[match.name] = tensor.permute(match.axes).numpy().copy()
    return traverse_util.unflatten_dict(params, sep="/")


def to_maps(tokens: torch.Tensor) -> torch.Tensor:
    """[B, N, C] of a square map -> [B, H, W, C]."""
    side = round(tokens.shape[1] ** 0.5)
    return tokens.unflatten(1, (side, side))


def to_positions(weights: torch.Tensor) -> torch.Tensor:
    """timm's weights of a square map, in our axes."""
    if weights.ndim == 4:  # GSA: [B, heads, H * W, h * w]
        return weights.unflatten(3, (round(weights.shape[3] ** 0.5), -1)).unflatten(
            2, (round(weights.shape[2] ** 0.5), -1)
        )
    # LSA: [B, windows, heads, queries, keys] -> [B, heads, rows, columns of windows, of positions, and of keys]
    by_axis = weights.unflatten(4, (7, 7)).unflatten(3, (7, 7)).unflatten(1, (round(weights.shape[1] ** 0.5), -1))
    return by_axis.permute(0, 3, 1, 4, 2, 5, 6, 7).flatten(4, 5).flatten(2, 3)


@pytest.fixture(scope="module", params=CONFIGS)
def comparison(request: pytest.FixtureRequest, timm: ModuleType) -> Comparison:
    family = request.param
    torch.manual_seed(0)
    theirs = randomize(make_timm(timm, CONFIGS[family]))
    blocks = [block for stage in theirs.blocks for block in stage]
    found: dict[str, torch.Tensor] = {}
    for i, block in enumerate(blocks):
        block.register_forward_hook(lambda *seen, i=i: found.update({f"block {i}": to_maps(seen[2])}))
        block.attn.fused_attn = False
    for i in LOOKED_AT[family]:
        dropout = blocks[i].attn.attn_drop  # its input and output are the weights
        dropout.register_forward_hook(lambda *seen, i=i: found.update({f"weights {i}": to_positions(seen[2])}))

    def run(images: torch.Tensor) -> dict[str, torch.Tensor]:
        found.clear()
        tokens = theirs.to(images.dtype).forward_features(images.permute(0, 3, 1, 2))
        heads = {
            "features": to_maps(tokens),
            "pre-logits": theirs.forward_head(tokens, pre_logits=True),
            "logits": theirs.forward_head(tokens),
        }
        return heads | {name: tensor.clone() for name, tensor in found.items()}

    def run_ours(model: twins_jax.TwinsClassifier, images: jax.Array) -> dict[str, jax.Array]:
        features = model.forward_features(images)
        heads = {
            "features": features,
            "pre-logits": model.forward_head(features, pre_logits=True),
            "logits": model.forward_head(features),
        }
        outputs = {f"block {i}": output for i, output in enumerate(model.intermediates(images))}
        weights = {f"weights {i}": twins_jax.visualize.attention_maps(model, images, i) for i in LOOKED_AT[family]}
        return heads | outputs | weights

    def ours(dtype: Any) -> nnx.Module:
        config = dataclasses.replace(CONFIGS[family], dtype=dtype, param_dtype=dtype)
        return twins_jax.TwinsClassifier(config, 10, rngs=nnx.Rngs(0))

    images = np.random.default_rng(0).standard_normal((2, 224, 224, 3), np.float32)
    return compare(run, ours, run_ours, to_params(theirs), images)


def test_equals_timm_in_float64(comparison: Comparison) -> None:
    assert len(comparison.torch64) == 3 + 2 + (5 if "block 4" in comparison.torch64 else 4)
    with fast_compilation():  # float64 has rounding to spare
        comparison.check_float64()


def test_rounds_as_little_as_timm_in_float32(comparison: Comparison) -> None:
    comparison.check_float32()
