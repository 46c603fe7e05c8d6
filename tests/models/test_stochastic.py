"""Dropout and stochastic depth."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import twins_jax
from tests.support.models import IMAGES, SVT, classifier, random_array, random_module
from twins_jax.attention import GlobalSubSampledAttention, LocallyGroupedAttention
from twins_jax.backbone import Block, Stage
from twins_jax.config import variant_config
from twins_jax.layers import Mlp, drop, drop_path

DROPOUT = dataclasses.replace(SVT, dropout_rate=0.25)


def test_rates_rise_linearly_over_all_blocks() -> None:
    config = dataclasses.replace(variant_config("twins_pcpvt_small"), drop_path_rate=0.3)
    expected = [0.3 * i / 15 for i in range(16)]
    assert [rate for rates in config.drop_path_rates() for rate in rates] == pytest.approx(expected)
    assert [len(rates) for rates in config.drop_path_rates()] == [3, 4, 6, 3]


def test_a_single_block_a_stage_has_rates() -> None:
    config = dataclasses.replace(SVT, depths=(1, 1, 1, 1), drop_path_rate=0.3)
    assert config.drop_path_rates() == [[0.0], [pytest.approx(0.1)], [pytest.approx(0.2)], [pytest.approx(0.3)]]


def test_a_model_has_the_rates_of_its_configuration() -> None:
    model = classifier(dataclasses.replace(SVT, drop_path_rate=0.2, dropout_rate=0.1))
    rates = [[block.drop_path.rate for block in stage.blocks] for stage in model.backbone.stages]
    assert rates == model.config.drop_path_rates()
    for stage in model.backbone.stages:
        assert stage.dropout.rate == 0.1
        assert all(block.attn.dropout.rate == block.mlp.dropout.rate == 0.1 for block in stage.blocks)


def test_only_a_key_makes_a_model_random(logits: jax.Array) -> None:
    apply, params = twins_jax.split_model(classifier(dataclasses.replace(SVT, drop_path_rate=0.5)))
    apply = jax.jit(apply)
    np.testing.assert_array_equal(apply(params, IMAGES), logits)
    one, again, other = (apply(params, IMAGES, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: LocallyGroupedAttention(16, 2, 7, config=DROPOUT, rngs=nnx.Rngs(0)),
        lambda: GlobalSubSampledAttention(16, 2, 1, config=DROPOUT, rngs=nnx.Rngs(0)),
        lambda: Mlp(16, 32, dropout_rate=DROPOUT.dropout_rate, rngs=nnx.Rngs(0)),
    ],
    ids=["LSA", "GSA", "Mlp"],
)
def test_dropout_drops_values_of_a_layers_output(make: Callable[[], nnx.Module]) -> None:
    layer = random_module(make)
    x = jnp.asarray(random_array(8, 7, 7, 16))
    dropped = np.asarray(layer(x, nnx.Rngs(dropout=jax.random.key(0)))) == 0
    # Five standard errors of the share of zeros.
    assert abs(dropped.mean() - 0.25) < 5 * (0.25 * 0.75 / dropped.size) ** 0.5
    assert not (np.asarray(layer(x)) == 0).any()


def test_dropout_drops_values_after_the_patch_embedding() -> None:
    stage = random_module(lambda: Stage(0, drop_path_rates=[0.0], config=DROPOUT, rngs=nnx.Rngs(0)))
    params = twins_jax.get_params(stage)
    silent = {name: jax.tree.map(jnp.zeros_like, params[name]) for name in ("blocks", "peg")}
    twins_jax.set_params(stage, params | silent)
    x = jnp.asarray(random_array(8, 28, 28, 3))
    embedded, dropped = np.asarray(stage(x)), np.asarray(stage(x, nnx.Rngs(dropout=jax.random.key(0))))
    # Five standard errors of the share of zeros.
    assert abs((dropped == 0).mean() - 0.25) < 5 * (0.25 * 0.75 / dropped.size) ** 0.5
    np.testing.assert_allclose(dropped[dropped != 0], embedded[dropped != 0] / 0.75, rtol=2e-7)  # one rounding


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_drop_path_drops_or_scales_whole_samples(rate: float) -> None:
    count = 4096
    x = random_array(count, 2, 3, 4)
    dropped = np.asarray(drop(drop_path(rate), jnp.asarray(x), nnx.Rngs(dropout=jax.random.key(0))))
    kept = dropped.any(axis=(1, 2, 3))
    assert not dropped[~kept].any()
    # Division and multiplication by the inverse differ by one rounding.
    np.testing.assert_allclose(dropped[kept], x[kept] / (1 - rate), rtol=2e-7)
    # Five standard errors of the share of samples that are kept: with the scaling, the mean is preserved.
    assert abs(kept.mean() - (1 - rate)) < 5 * (rate * (1 - rate) / count) ** 0.5


@pytest.mark.parametrize("branch", ["attn", "mlp"])
def test_a_dropped_branch_leaves_a_sample_as_it_was(branch: str) -> None:
    rate = 0.5
    block = random_module(lambda: Block(0, 0, drop_path_rate=rate, config=SVT, rngs=nnx.Rngs(0)))
    silent = block.mlp.fc2 if branch == "attn" else block.attn.proj
    silent.kernel[...], silent.bias[...] = (jnp.zeros_like(p[...]) for p in (silent.kernel, silent.bias))
    x = jnp.asarray(random_array(64, 7, 7, 16))
    full = np.asarray(block(x) - x)
    y = np.asarray(block(x, nnx.Rngs(dropout=jax.random.key(0))))

    dropped = (y == x).all(axis=(1, 2, 3))
    assert 16 <= dropped.sum() <= 48  # four standard deviations about 32
    # x is added before and subtracted after: a few roundings of 6e-8 at values of up to 10.
    np.testing.assert_allclose((y - x)[~dropped], full[~dropped] / (1 - rate), atol=1e-5)


def test_attention_and_mlp_are_dropped_independently() -> None:
    block = random_module(lambda: Block(0, 0, drop_path_rate=0.5, config=SVT, rngs=nnx.Rngs(0)))
    x = jnp.asarray(random_array(64, 7, 7, 16))
    y = np.asarray(block(x, nnx.Rngs(dropout=jax.random.key(0))))
    both_dropped = (y == x).all(axis=(1, 2, 3)).sum()
    assert 3 <= both_dropped <= 30  # four standard deviations about 16; dropped together, about 32
