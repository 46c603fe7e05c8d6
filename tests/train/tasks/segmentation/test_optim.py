"""The schedule against mmcv's hooks, and the parameters that decay against upstream's names."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import pytest
from flax import nnx, traverse_util

import twins_jax
from train.recipes import ade20k_fpn_svt_small, ade20k_upernet_pcpvt_small, ade20k_upernet_svt_small
from train.tasks.segmentation.config import SegmentationOptimConfig
from twins_jax import InputError

FLOAT32 = 1e-6
"""Relative; each rate is the result of a few float32 operations, one of them a power."""


def rates(optim: SegmentationOptimConfig, steps: list[int], total: int) -> list[float]:
    schedule = optim.make_schedule(batch_size=16, total_steps=total, train_examples=20_210)
    return [float(schedule(step)) for step in steps]


def of_mmcv(base: float, least: float, power: float, warmup: int, step: int, total: int) -> float:
    """`PolyLrUpdaterHook.get_lr` and `LrUpdaterHook.get_warmup_lr` of mmcv 1.2.5, with `warmup_ratio=1e-6`."""
    regular = (base - least) * (1 - step / total) ** power + least
    if step >= warmup:
        return regular
    return regular * (1 - (1 - step / warmup) * (1 - 1e-6))


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [(ade20k_fpn_svt_small, (1e-4, 1e-6, 0.9, 0)), (ade20k_upernet_svt_small, (6e-5, 0.0, 1.0, 1500))],
)
def test_schedule_is_mmcvs(recipe: Any, settings: tuple[float, float, float, int]) -> None:
    config = recipe()
    steps = [0, 1, 749, 1499, 1500, 1501, 40_000, config.steps - 1, config.steps]
    expected = [of_mmcv(*settings, step, config.steps) for step in steps]
    assert rates(config.optim, steps, config.steps) == pytest.approx(expected, rel=FLOAT32)


def test_warm_up_of_a_short_run_ends_before_it_does() -> None:
    found = rates(SegmentationOptimConfig(learning_rate=1.0), [0, 1, 9], 10)
    assert found == pytest.approx([1e-6, 0.9 * (1 - 8 / 9 * (1 - 1e-6)), 0.1], rel=FLOAT32)
    assert rates(SegmentationOptimConfig(learning_rate=1.0), [0], 1) == [1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_learning_rate": 1.0}, "optim.min_learning_rate=1.0: must be from 0 to learning_rate"),
        ({"power": math.inf}, "optim.power=inf: must be a positive number"),
        ({"warmup_steps": -1}, "optim.warmup_steps=-1: must be an integer from 0"),
        ({"warmup_ratio": 1.5}, r"optim.warmup_ratio=1.5: must be a factor in \[0, 1\]"),
        ({"decay": "none"}, "optim.decay='none': must be one of all, no_norm"),
    ],
)
def test_settings_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SegmentationOptimConfig(), **change)


def upstream(path: str) -> str:
    """The name of a backbone's module in upstream's gvt.py; a head's own path, whose modules are named as there."""
    names = {"peg": "pos_block", "norms": "norm_list", "sub_sample": "sr"}
    return ".".join(names.get(part, part) for part in path.split("/"))


@pytest.mark.parametrize("recipe", [ade20k_upernet_svt_small, ade20k_upernet_pcpvt_small])
def test_parameters_that_decay_in_upernet(recipe: Any) -> None:
    config = recipe()
    name = config.model["name"]
    model = nnx.eval_shape(lambda: twins_jax.create_segmenter(name, head=config.head, rngs=nnx.Rngs(0)))
    params = traverse_util.flatten_dict(twins_jax.get_params(model), sep="/")
    found = {path for path, leaf in params.items() if config.optim.decays(path, leaf)}
    expected = {path for path in params if "norm" not in upstream(path) and "pos_block" not in upstream(path)}
    assert found == expected
    kinds = {
        "backbone/stages/0/blocks/0/norm1/scale": False,
        "backbone/stages/0/patch_embed/norm/bias": False,
        "backbone/stages/0/peg/kernel": False,
        "backbone/stages/0/blocks/0/mlp/fc1/bias": True,
        "decode_head/fpn_bottleneck/bn/scale": True,
        "decode_head/classifier/conv/bias": True,
        "auxiliary_head/conv/bn/bias": True,
    }
    assert {path: path in found for path in kinds} == kinds
    if "svt" in name:
        assert not any(path.startswith("backbone/norms/") for path in found)


def test_all_parameters_decay_in_semantic_fpn() -> None:
    optim = ade20k_fpn_svt_small().optim
    assert optim.decays("backbone/stages/0/peg/kernel", jnp.zeros(()))
    assert optim.decays("backbone/norms/0/scale", jnp.zeros(()))
