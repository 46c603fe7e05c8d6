"""Whole classifiers and their feature maps against timm, on random weights that go through a .safetensors file."""

import dataclasses
import tempfile
from pathlib import Path
from types import ModuleType
from unittest import mock

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.torch import save_file

import twins_jax
from tests.parity.reference import Outputs, precision, randomise, run_jax, run_torch
from twins_jax import TwinsBackbone, TwinsClassifier

CASES = [(name, 224, 224) for name in twins_jax.list_models() if name != "twins_svt_tiny"]
CASES += [("twins_pcpvt_small", 230, 311), ("twins_svt_small", 230, 311)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}x{case[2]}")
def outputs(request: pytest.FixtureRequest, timm: ModuleType) -> Outputs:
    name, height, width = request.param
    torch.manual_seed(0)
    theirs = randomise(timm.create_model(name))
    with tempfile.TemporaryDirectory() as folder:  # pytest's own would keep gigabytes of weights for three runs
        file = Path(folder, "weights.safetensors")
        save_file(theirs.state_dict(), file)
        ours = twins_jax.from_pretrained(file)
    params = twins_jax.get_params(ours)
    with precision(np.dtype(np.float64)):
        config = dataclasses.replace(ours.config, dtype=np.float64, param_dtype=np.float64)
        ours64 = nnx.eval_shape(lambda: TwinsClassifier(config, ours.num_classes, rngs=nnx.Rngs(0)))

    def run(images: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens, maps = theirs.forward_intermediates(images.permute(0, 3, 1, 2))
        logits = theirs.forward_head(tokens)
        return {f"map {i}": m.permute(0, 2, 3, 1) for i, m in enumerate(maps)} | {"logits": logits}

    x = np.random.default_rng(0).standard_normal((2, height, width, 3))
    torch32 = run_torch(run, x.astype(np.float32))
    theirs.double()
    # The truth is of the same input: rounded to float32.
    x = x.astype(np.float32)
    return Outputs(
        torch32=torch32,
        torch64=run_torch(run, x.astype(np.float64)),
        jax32=run_jax(ours, params, maps_and_logits, x),
        jax64=run_jax(ours64, params, maps_and_logits, x.astype(np.float64)),
    )


def maps_and_logits(model: TwinsClassifier, images: jax.Array) -> dict[str, jax.Array]:
    """The logits, and the maps that the model's backbone gave on the way to them."""
    maps: list[jax.Array] = []
    backbone = TwinsBackbone.__call__

    def recording(*args: object, **kwargs: object) -> tuple[jax.Array, ...]:
        maps.extend(backbone(*args, **kwargs))
        return tuple(maps)

    with mock.patch.object(TwinsBackbone, "__call__", recording):
        logits = model(images)
    return {f"map {i}": m for i, m in enumerate(maps)} | {"logits": logits}


def test_equals_timm_in_float64(outputs: Outputs) -> None:
    outputs.check_float64()


def test_rounds_as_little_as_timm_in_float32(outputs: Outputs) -> None:
    outputs.check_float32()
