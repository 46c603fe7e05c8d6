"""Every layer against timm's, at maps that windows and sub-sampling do not tile too."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from flax import nnx

from tests.parity.reference import Comparison, compare, ported, randomize
from twins_jax.attention import GlobalSubSampledAttention, LocallyGroupedAttention
from twins_jax.backbone import Block
from twins_jax.config import TwinsConfig, variant_config
from twins_jax.layers import Mlp, PatchEmbed
from twins_jax.peg import PositionalEncodingGenerator

CONFIG = variant_config("twins_svt_tiny")
STAGE, DIM, HEADS, RATIO = 1, 64, 2, 4
assert (CONFIG.embed_dims[STAGE], CONFIG.num_heads[STAGE], CONFIG.sub_sampling_ratios[STAGE]) == (DIM, HEADS, RATIO)


class Layer(NamedTuple):
    theirs: Callable[[ModuleType], torch.nn.Module]
    ours: Callable[[TwinsConfig, nnx.Rngs], nnx.Module]
    channels: int = DIM
    mean: float = 0.0
    names: Mapping[str, str] = MappingProxyType({})


def patch_embed(in_channels: int, size: int) -> Layer:
    return Layer(
        theirs=lambda twins: twins.PatchEmbed(size, size, in_channels, DIM),
        ours=lambda config, rngs: PatchEmbed(in_channels, DIM, size, **config.dtypes, rngs=rngs),
        channels=in_channels,
    )


def gsa(ratio: int) -> Layer:
    return Layer(
        theirs=lambda twins: twins.GlobalSubSampleAttn(DIM, HEADS, sr_ratio=ratio),
        ours=lambda config, rngs: GlobalSubSampledAttention(DIM, HEADS, ratio, config=config, rngs=rngs),
        names={".sr.": ".sub_sample."},
    )


def block(index: int, window_size: int, mean: float = 0.0) -> Layer:
    norm = functools.partial(torch.nn.LayerNorm, eps=1e-6)
    return Layer(
        theirs=lambda twins: twins.Block(DIM, HEADS, sr_ratio=RATIO, ws=window_size, norm_layer=norm),
        ours=lambda config, rngs: Block(STAGE, index, drop_path_rate=0.0, config=config, rngs=rngs),
        mean=mean,
        names={".sr.": ".sub_sample."},
    )


LSA = Layer(
    theirs=lambda twins: twins.LocallyGroupedAttn(DIM, HEADS, ws=7),
    ours=lambda config, rngs: LocallyGroupedAttention(DIM, HEADS, 7, config=config, rngs=rngs),
)
PEG = Layer(
    theirs=lambda twins: twins.PosConv(DIM, DIM),
    ours=lambda config, rngs: PositionalEncodingGenerator(DIM, **config.dtypes, rngs=rngs),
    names={".proj.0.": "."},
)
MLP = Layer(
    theirs=lambda twins: twins.Mlp(DIM, 4 * DIM),
    ours=lambda config, rngs: Mlp(DIM, 4 * DIM, **config.dtypes, rngs=rngs),
)

CASES = {
    "PatchEmbed 4": (patch_embed(3, 4), 63, 86),
    "PatchEmbed 4 of one channel": (patch_embed(1, 4), 32, 45),
    "PatchEmbed 2": (patch_embed(DIM, 2), 21, 34),
    "PEG": (PEG, 10, 17),
    "PEG of one position": (PEG, 1, 1),
    "LSA padded on both sides": (LSA, 10, 17),
    "LSA padded at the right": (LSA, 14, 17),
    "LSA padded at the bottom": (LSA, 10, 21),
    "LSA without padding": (LSA, 14, 21),
    "LSA in one part of a window": (LSA, 3, 5),
    "GSA 8": (gsa(8), 31, 43),
    "GSA 4": (gsa(4), 19, 30),
    "GSA 2": (gsa(2), 13, 18),
    "GSA 1": (gsa(1), 7, 10),
    "Mlp": (MLP, 10, 17),
    "Block of LSA": (block(0, 7), 10, 17),
    "Block of GSA": (block(1, 1), 10, 17),
    # Maps whose variance is the small difference of large squares, unless LayerNorm computes it in two passes.
    "Block of a map far from zero": (block(0, 7, mean=10.0), 10, 17),
}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def comparison(request: pytest.FixtureRequest, timm: ModuleType) -> Comparison:
    layer, height, width = request.param
    torch.manual_seed(0)
    theirs = randomize(layer.theirs(timm.models.twins))

    def run(x: torch.Tensor) -> dict[str, torch.Tensor]:
        theirs.to(x.dtype)
        if isinstance(theirs, timm.models.twins.PatchEmbed):
            tokens, size = theirs(x.permute(0, 3, 1, 2))
        elif isinstance(theirs, timm.models.twins.Mlp):
            tokens, size = theirs(x), x.shape[1:3]
        else:
            size = x.shape[1:3]
            tokens = theirs(x.flatten(1, 2), size)
        return {"map": tokens.reshape(len(x), *size, -1)}

    return compare(
        run,
        ours=lambda dtype: layer.ours(dataclasses.replace(CONFIG, dtype=dtype, param_dtype=dtype), nnx.Rngs(0)),
        run_ours=lambda module, x: {"map": module(x)},
        params=ported(theirs, layer.names),
        x=layer.mean + np.random.default_rng(0).standard_normal((2, height, width, layer.channels), np.float32),
    )


def test_equals_timm_in_float64(comparison: Comparison) -> None:
    comparison.check_float64()


def test_rounds_as_little_as_timm_in_float32(comparison: Comparison) -> None:
    comparison.check_float32()
