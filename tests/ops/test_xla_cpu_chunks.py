"""Inference a few images at a time against the whole batch at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import twins_jax
from tests.support.models import SVT, classifier, random_array, random_module, relative_error, run
from twins_jax import ops
from twins_jax.backbone import Stage
from twins_jax.ops import xla_cpu
from twins_jax.ops.xla_cpu import POSITIONS, chunk_size

EPS = float(jnp.finfo(jnp.float32).eps)
FIRST_STAGE = 56 * 56


@pytest.mark.parametrize(
    ("batch", "positions", "expected"),
    [
        (8, FIRST_STAGE, 2),
        (7, FIRST_STAGE, 1),  # half of a full chunk
        (8, FIRST_STAGE // 4, 8),
        (64, FIRST_STAGE // 4, 8),
        (60, FIRST_STAGE // 16, 30),
        (37, FIRST_STAGE // 16, 37),  # chunks of one image would be too small
        (1, FIRST_STAGE, 1),
        (8, 10 * POSITIONS, 1),
        (0, FIRST_STAGE, 0),
    ],
)
def test_chunks_divide_the_batch_and_are_neither_too_large_nor_too_small(
    batch: int, positions: int, expected: int
) -> None:
    assert chunk_size(batch, positions) == expected


class FirstStage(nnx.Module):
    """Images [B, H, W, 3] -> features [B, C], by an LSA and a GSA block."""

    def __init__(self) -> None:
        self.stage = Stage(0, drop_path_rates=[0.0, 0.0], config=SVT, rngs=nnx.Rngs(0))

    def __call__(self, images: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        return ops.by_image(self.stage, images, rngs, stride=4).mean((1, 2))


IMAGES = random_array(4, 64, 64, 3)


@pytest.fixture(scope="module")
def model() -> FirstStage:
    return random_module(FirstStage)


@pytest.fixture(scope="module")
def at_once(model: FirstStage) -> np.ndarray:
    """The features of all images at once: their maps are smaller than a chunk."""
    apply, params = twins_jax.split_model(model)
    program = jax.jit(apply).lower(params, IMAGES)
    assert "stablehlo.while" not in program.as_text()
    return np.asarray(program.compile()(params, IMAGES))


@pytest.fixture
def one_image_a_chunk(monkeypatch: pytest.MonkeyPatch, at_once: np.ndarray) -> None:
    del at_once  # is computed before
    monkeypatch.setattr(xla_cpu, "POSITIONS", 16 * 16)


@pytest.mark.usefixtures("one_image_a_chunk")
def test_chunks_change_nothing_but_rounding(model: FirstStage, at_once: np.ndarray) -> None:
    apply, params = twins_jax.split_model(model)
    program = jax.jit(apply).lower(params, IMAGES)
    assert "stablehlo.while" in program.as_text()
    assert relative_error(program.compile()(params, IMAGES), at_once) <= 16 * EPS


def test_remat_works_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_array(4, 32, 32, 3)
    expected = run(classifier(SVT), images)
    monkeypatch.setattr(xla_cpu, "POSITIONS", 8 * 8)  # one image in the first stage
    apply, params = twins_jax.split_model(classifier(dataclasses.replace(SVT, remat=True)))
    program = jax.jit(apply).lower(params, images)
    assert "stablehlo.while" in program.as_text()
    assert relative_error(program.compile()(params, images), expected) <= 16 * EPS


def test_an_exported_program_takes_any_batch(model: FirstStage, at_once: np.ndarray) -> None:
    apply, params = twins_jax.split_model(model)
    images = jax.ShapeDtypeStruct(export.symbolic_shape("batch, 64, 64, 3"), jnp.float32)
    exported = export.export(jax.jit(apply))(params, images)
    for batch in (1, 3):
        assert relative_error(exported.call(params, IMAGES[:batch]), at_once[:batch]) <= 16 * EPS


@pytest.mark.usefixtures("one_image_a_chunk")
def test_derivatives_are_of_the_whole_batch(model: FirstStage) -> None:
    apply, params = twins_jax.split_model(model)

    def loss(params: twins_jax.Params, images: jax.Array) -> jax.Array:
        return jnp.square(apply(params, images)).mean()

    gradients = jax.jit(jax.grad(loss))
    assert "stablehlo.while" not in gradients.lower(params, IMAGES).as_text()
    one_by_one = [gradients(params, image[None]) for image in IMAGES]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *one_by_one)
    found = gradients(params, IMAGES)
    for (path, leaf), expected in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(mean), strict=True):
        if jax.tree_util.keystr(path, simple=True, separator="/").endswith("kv/bias"):
            half = len(leaf) // 2  # the softmax takes no notice of a bias of all keys: that gradient is rounding alone
            leaf, expected = leaf[half:], expected[half:]
        # Of each leaf's own largest value: the queries have a small part of the gradient of the head.
        assert relative_error(leaf, expected) <= 64 * EPS, path


@pytest.mark.usefixtures("one_image_a_chunk")
def test_directional_derivatives_work_through_chunks(model: FirstStage, monkeypatch: pytest.MonkeyPatch) -> None:
    apply, params = twins_jax.split_model(model)

    def derivative() -> jax.Array:
        def along_ones(x: jax.Array) -> jax.Array:
            return jax.jvp(lambda x: apply(params, x), (x,), (jnp.ones_like(x),))[1]

        return jax.jit(along_ones)(IMAGES)

    in_chunks = derivative()
    monkeypatch.setattr(xla_cpu, "POSITIONS", POSITIONS)
    assert relative_error(in_chunks, derivative()) <= 64 * EPS
