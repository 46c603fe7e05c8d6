""" "mask" window padding against a slow PyTorch version of what upstream's segmentation code does."""

import dataclasses
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from flax import nnx

import twins_jax
from tests.parity.reference import Comparison, compare, load, make_tiny, ported, randomise
from twins_jax.attention import LocallyGroupedAttention
from twins_jax.backbone import TwinsBackbone
from twins_jax.config import variant_config

CONFIG = dataclasses.replace(variant_config("twins_svt_tiny"), window_padding="mask")
DIM, HEADS, WINDOW = 64, 2, 7
SIZES = {
    "both sides": (10, 17),
    "both sides, one window": (3, 5),
    "right": (14, 17),
    "bottom": (10, 21),
    "none": (14, 21),
}


def masked_lsa(attn: Any, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """LSA window by window and head by head, on timm's parameters; takes the place of `LocallyGroupedAttn.forward`."""
    height, width = size
    batch, _, dim = tokens.shape
    rows, columns = -(-height // attn.ws) * attn.ws, -(-width // attn.ws) * attn.ws
    padded = tokens.new_zeros(batch, rows, columns, dim)
    padded[:, :height, :width] = tokens.reshape(batch, height, width, dim)
    is_real = torch.zeros(rows, columns, dtype=torch.bool)
    is_real[:height, :width] = True
    masks = rows > height and columns > width  # upstream's exception: with padding on one side only, nothing is masked

    query, key, value = attn.qkv(padded).split(dim, dim=-1)
    attended = torch.empty_like(padded)
    head_dim = dim // attn.num_heads
    for top in range(0, rows, attn.ws):
        for left in range(0, columns, attn.ws):
            window = slice(top, top + attn.ws), slice(left, left + attn.ws)
            real = is_real[window].flatten()
            apart = real[:, None] ^ real[None, :]
            for head in range(attn.num_heads):
                place = slice(None), *window, slice(head * head_dim, (head + 1) * head_dim)
                q, k, v = (part[place].flatten(1, 2) for part in (query, key, value))
                scores = q @ k.mT / head_dim**0.5
                if masks:
                    scores = scores - 1000.0 * apart
                attended[place] = (scores.softmax(-1) @ v).unflatten(1, (attn.ws, attn.ws))
    return attn.proj(attended[:, :height, :width]).reshape(tokens.shape)


@pytest.fixture(scope="module", params=SIZES.values(), ids=SIZES.keys())
def comparison(request: pytest.FixtureRequest, timm: ModuleType) -> Comparison:
    torch.manual_seed(0)
    theirs = randomise(timm.models.twins.LocallyGroupedAttn(DIM, HEADS, ws=WINDOW))

    def ours(dtype: np.dtype) -> LocallyGroupedAttention:
        config = dataclasses.replace(CONFIG, dtype=dtype, param_dtype=dtype)
        return LocallyGroupedAttention(DIM, HEADS, WINDOW, config=config, rngs=nnx.Rngs(0))

    return compare(
        theirs,
        lambda x: {"map": masked_lsa(theirs, x.flatten(1, 2), x.shape[1:3]).reshape(x.shape)},
        ours,
        lambda module, x: {"map": module(x)},
        ported(theirs, {}),
        np.random.default_rng(0).standard_normal((2, *request.param, DIM), np.float32),
    )


def test_equals_upstream_in_float64(comparison: Comparison) -> None:
    comparison.check_float64()


def test_rounds_as_little_as_pytorch_in_float32(comparison: Comparison) -> None:
    comparison.check_float32()


def test_a_whole_backbone_masks(timm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = make_tiny(timm)
    monkeypatch.setattr(timm.models.twins.LocallyGroupedAttn, "forward", masked_lsa)
    params = twins_jax.get_params(load(theirs, window_padding="mask").backbone)

    def run(images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = theirs.forward_intermediates(images.permute(0, 3, 1, 2), intermediates_only=True)
        return {f"map {i}": m.permute(0, 2, 3, 1) for i, m in enumerate(maps)}

    comparison = compare(
        theirs,
        run,
        lambda dtype: TwinsBackbone(dataclasses.replace(CONFIG, dtype=dtype, param_dtype=dtype), rngs=nnx.Rngs(0)),
        lambda backbone, images: {f"map {i}": m for i, m in enumerate(backbone(images))},
        params,
        # Windows of 7 tile neither side of any of the maps: 25x33, 12x16, 6x8, 3x4.
        np.random.default_rng(0).standard_normal((2, 100, 132, 3), np.float32),
    )
    comparison.check_float64()
