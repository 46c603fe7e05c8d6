"""Whole classifiers and their feature maps against timm, on random weights that go through a .safetensors file."""

import functools
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch

import twins_jax
from tests.parity.reference import Comparison, compare_models, load, randomize
from twins_jax import TwinsClassifier

PARAMETERS = {  # with 1,000 classes
    "twins_pcpvt_small": 24_106_216,
    "twins_pcpvt_base": 43_828_456,
    "twins_pcpvt_large": 60_989_672,
    "twins_svt_small": 24_060_776,
    "twins_svt_base": 56_070_952,
    "twins_svt_large": 99_271_400,
}
SMALL = [(name, *size) for size in ((224, 224), (230, 311)) for name in ("twins_pcpvt_small", "twins_svt_small")]
LARGER = [(name, 224, 224) for name in PARAMETERS if not name.endswith("small")]
AT_224 = SMALL[:2]  # the first ones in each list: pytest makes a case once for all tests that have it in one place
each = functools.partial(
    pytest.mark.parametrize, "case", indirect=True, scope="module", ids=lambda case: f"{case[0]}-{case[1]}x{case[2]}"
)


class Case(NamedTuple):
    name: str
    ours: TwinsClassifier
    theirs: Any
    comparison: Comparison


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, timm: ModuleType) -> Case:
    name, height, width = request.param
    torch.manual_seed(0)
    theirs = randomize(timm.create_model(name))
    ours = load(theirs.state_dict())

    def run(images: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens, maps = theirs.to(images.dtype).forward_intermediates(images.permute(0, 3, 1, 2))
        logits = theirs.forward_head(tokens)
        return {f"map {i}": m.permute(0, 2, 3, 1) for i, m in enumerate(maps)} | {"logits": logits}

    batch = 2 if name.endswith("small") else 1  # one image has 1,000 logits to find the largest error in
    images = np.random.default_rng(0).standard_normal((batch, height, width, 3), np.float32)
    return Case(name, ours, theirs, compare_models(run, ours, images))


# The larger ones differ by numbers in a table, which float32 checks too; compiling them for float64 takes long.
@each(SMALL)
def test_equals_timm_in_float64(case: Case) -> None:
    case.comparison.check_float64()


# The function is known from float64, and its operations are the same at each size: test_options.py and
# test_segmentation.py have the small ones in float32 at sizes that windows and sub-sampling do not divide.
@each(AT_224 + LARGER)
def test_rounds_as_little_as_timm_in_float32(case: Case) -> None:
    case.comparison.check_float32()


@each(AT_224 + LARGER)
def test_number_of_parameters(case: Case) -> None:
    assert sum(parameter.numel() for parameter in case.theirs.parameters()) == PARAMETERS[case.name]
    assert sum(leaf.size for leaf in jax.tree.leaves(twins_jax.get_params(case.ours))) == PARAMETERS[case.name]
