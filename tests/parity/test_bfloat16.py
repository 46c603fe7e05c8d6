"""bfloat16 models against float32 ones, beside the error of PyTorch's autocast on the same weights and images."""

import dataclasses
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.typing import DTypeLike

import twins_jax
from tests.parity.reference import load, randomise
from twins_jax import TwinsClassifier

TOLERANCE = 0.02
"""Of an image's largest logit: the project's own criterion. bfloat16 rounds by up to 2^-9 = 0.002."""

# name, images, side. Of the larger ones a few: their logits are many, and a top-1 needs no more than the small ones'.
CASES = [
    ("twins_pcpvt_small", 256, 64),
    ("twins_svt_small", 256, 64),
    ("twins_svt_small", 4, 224),
    ("twins_pcpvt_base", 16, 64),
    ("twins_pcpvt_large", 16, 64),
    ("twins_svt_base", 16, 64),
    ("twins_svt_large", 16, 64),
]


class Logits(NamedTuple):
    """[images, 1000], as float32; by library and dtype of the computation."""

    ours32: np.ndarray
    ours16: np.ndarray
    torch32: np.ndarray
    torch16: np.ndarray


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}x{case[2]}")
def logits(request: pytest.FixtureRequest, timm: ModuleType) -> Logits:
    name, count, side = request.param
    torch.manual_seed(0)
    theirs = randomise(timm.create_model(name))
    ours = load(theirs)
    images = np.random.default_rng(0).standard_normal((count, side, side, 3), np.float32)

    def run(dtype: DTypeLike) -> np.ndarray:
        config = dataclasses.replace(ours.config, dtype=dtype)
        model = nnx.eval_shape(lambda: TwinsClassifier(config, ours.num_classes, rngs=nnx.Rngs(0)))
        apply, _ = twins_jax.split_model(model)
        with jax.numpy_dtype_promotion("standard"):  # NNX's LayerNorm promotes bfloat16 with float32
            return np.asarray(jax.jit(apply)(twins_jax.get_params(ours), images).astype(jnp.float32))

    def run_theirs(*, autocast: bool) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            array: np.ndarray = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).float().numpy()
            return array

    return Logits(run(jnp.float32), run(jnp.bfloat16), run_theirs(autocast=False), run_theirs(autocast=True))


def test_logits_are_within_the_tolerance(logits: Logits) -> None:
    largest = np.abs(logits.ours32).max(axis=1, keepdims=True)
    assert (np.abs(logits.ours16 - logits.ours32) / largest).max() <= TOLERANCE


def test_rounds_no_more_than_autocast(logits: Logits) -> None:
    """Over all logits, of which there are enough for the two means to differ by little else than the rounding."""

    def error(logits16: np.ndarray, logits32: np.ndarray) -> float:
        return float(np.sqrt(((logits16 - logits32) ** 2).mean() / (logits32**2).mean()))

    assert error(logits.ours16, logits.ours32) <= 1.1 * error(logits.torch16, logits.torch32)


def test_top1_agrees(logits: Logits) -> None:
    """Random weights leave the first two of 1,000 classes nearly tied for some images: those do not count.

    A tie is a lead of less than the tolerance, of a tenth of the images or so.
    """
    second, first = np.sort(logits.ours32, axis=1)[:, -2:].T
    decided = (first - second) > TOLERANCE * np.abs(logits.ours32).max(axis=1)
    assert decided.mean() > 0.5
    agree = logits.ours16.argmax(axis=1) == logits.ours32.argmax(axis=1)
    assert agree[decided].mean() >= 0.995
