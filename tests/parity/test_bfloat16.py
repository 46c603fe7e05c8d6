"""Logits of bfloat16 models against float32, beside PyTorch's autocast; `bfloat16.py` prints them for all variants."""

from types import ModuleType

import pytest

from tests.scripts.bfloat16 import Logits, agree, compute, largest_error, lead, rms_error

TOLERANCE = 0.02
"""Of an image's largest logit: the project's own criterion. bfloat16 rounds by up to 2^-9 = 0.002."""

# name, images, side. The deepest and the widest, in which rounding adds up the most.
CASES = [("twins_pcpvt_large", 32, 64), ("twins_svt_large", 2, 224)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}x{case[2]}")
def logits(request: pytest.FixtureRequest, timm: ModuleType) -> Logits:
    del timm
    return compute(*request.param)


def test_logits_are_within_the_tolerance(logits: Logits) -> None:
    assert largest_error(logits.ours, logits.truth) <= TOLERANCE


def test_rounds_no_more_than_autocast(logits: Logits) -> None:
    """Over all logits, enough of them for the two to differ by little else than rounding."""
    assert rms_error(logits.ours, logits.truth) <= 1.1 * rms_error(logits.autocast, logits.truth)


def test_top1_agrees(logits: Logits) -> None:
    """Random weights leave the first two of 1,000 classes nearly tied in a part of the images: those do not count."""
    decided = lead(logits.truth) > TOLERANCE
    assert decided.mean() >= 0.5
    assert agree(logits.ours, logits.truth)[decided].mean() >= 0.995
