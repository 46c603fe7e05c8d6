import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np
import pytest
from flax import nnx

import twins_jax
from tests.support.models import PCPVT, SVT, backbone, classifier, named, random_array
from twins_jax import TwinsBackbone, TwinsClassifier

COUNTS = {"twins_pcpvt_small": 24_106_216, "twins_svt_small": 24_060_776}
"""Counted on timm's models; tests/parity has those of the larger ones."""


@pytest.mark.parametrize("name", COUNTS)
def test_number_of_parameters(name: str) -> None:
    model = nnx.eval_shape(lambda: twins_jax.create_model(name, rngs=nnx.Rngs(0)))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model))) == COUNTS[name]


@pytest.mark.parametrize(
    "make",
    [lambda: classifier(PCPVT), lambda: backbone(dataclasses.replace(SVT, stage_norms=True))],
    ids=["PCPVT classifier", "SVT backbone with stage norms"],
)
def test_every_parameter_gets_a_gradient(make: Callable[[], TwinsBackbone | TwinsClassifier]) -> None:
    apply, params = twins_jax.split_model(make())
    # 64x64 leaves 2x2 positions in the last stage; with only one, queries and keys would not matter.
    images = random_array(2, 64, 64, 3)

    def loss(params: twins_jax.functional.Params) -> jax.Array:
        # Weights of both signs: LayerNorm's outputs add up to the same for any input.
        outputs = jax.tree.leaves(apply(params, images))
        return sum((output * random_array(*output.shape, seed=i)).sum() for i, output in enumerate(outputs))

    gradients = named(jax.jit(jax.grad(loss))(params))
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for path, gradient in gradients.items():
        assert np.isfinite(gradient).all(), path
        # float32's noise, where the gradient is zero, is 1e-8 to 1e-7 of the largest.
        assert np.abs(gradient).max() > 1e-4 * largest, path


@pytest.fixture(scope="module")
def fresh() -> dict[str, np.ndarray]:
    """Checks a new model's initial parameters; all stages are alike, since each new shape takes time to initialize."""
    config = dataclasses.replace(
        SVT, embed_dims=(32, 32, 32, 32), num_heads=(2, 2, 2, 2), depths=(2, 2, 2, 2), in_channels=1
    )
    return named(twins_jax.get_params(TwinsClassifier(config, 100, rngs=nnx.Rngs(0))))


def reference_std(path: str, shape: tuple[int, ...]) -> float:
    """The standard deviation of upstream's initializer."""
    if len(shape) == 2:
        return 0.02
    height, width, _, out_channels = shape
    groups = out_channels if path.endswith("peg/kernel") else 1
    return math.sqrt(2 / (height * width * out_channels / groups))


def test_initial_kernels(fresh: dict[str, np.ndarray]) -> None:
    for path, kernel in fresh.items():
        if not path.endswith("kernel"):
            continue
        z = kernel / reference_std(path, kernel.shape)
        # Five standard errors of a mean and of a standard deviation, over about 60 kernels.
        assert abs(z.mean()) < 5 / math.sqrt(z.size), path
        assert abs(z.std() - 1) < 5 / math.sqrt(2 * z.size), path
    assert fresh["backbone/stages/0/patch_embed/proj/kernel"].shape == (4, 4, 1, 32)


def test_initial_biases_and_norms(fresh: dict[str, np.ndarray]) -> None:
    for path, values in fresh.items():
        if path.endswith("bias"):
            assert not values.any(), path
        elif path.endswith("scale"):
            assert (values == 1).all(), path


def test_no_two_kernels_start_alike(fresh: dict[str, np.ndarray]) -> None:
    kernels = {path: kernel / reference_std(path, kernel.shape) for path, kernel in fresh.items() if "kernel" in path}
    assert len({tuple(kernel.ravel()[:4]) for kernel in kernels.values()}) == len(kernels)
