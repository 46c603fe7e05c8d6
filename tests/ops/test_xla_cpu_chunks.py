"""Inference a few images at a time against the whole batch at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import twins_jax
from tests.support.models import SVT, classifier, random_array, relative_error, run
from twins_jax.ops import xla_cpu
from twins_jax.ops.xla_cpu import POSITIONS, chunk_size

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


@pytest.fixture(scope="module")
def model() -> twins_jax.TwinsClassifier:
    return twins_jax.create_model("twins_svt_tiny", num_classes=5, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((4, 224, 224, 3), np.float32))


def test_chunks_change_nothing_but_rounding(model: twins_jax.TwinsClassifier, images: jax.Array) -> None:
    apply, params = twins_jax.split_model(model)
    program = jax.jit(apply).lower(params, images)
    assert "stablehlo.while" in program.as_text()
    at_once = model(images)  # no chunks outside jit
    difference = jnp.abs(program.compile()(params, images) - at_once).max()
    assert difference <= 16 * jnp.finfo(jnp.float32).eps * jnp.abs(at_once).max()


def test_remat_works_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_array(4, 32, 32, 3)
    expected = run(classifier(SVT), images)
    monkeypatch.setattr(xla_cpu, "POSITIONS", 8 * 8)  # one image in the first stage
    apply, params = twins_jax.split_model(classifier(dataclasses.replace(SVT, remat=True)))
    program = jax.jit(apply).lower(params, images)
    assert "stablehlo.while" in program.as_text()
    assert relative_error(program.compile()(params, images), expected) <= 16 * jnp.finfo(jnp.float32).eps


def test_an_exported_program_takes_any_batch(model: twins_jax.TwinsClassifier) -> None:
    apply, params = twins_jax.split_model(model)
    images = jax.ShapeDtypeStruct(export.symbolic_shape("batch, 64, 64, 3"), jnp.float32)
    exported = export.export(jax.jit(apply))(params, images)
    for batch in (1, 3):
        ones = jnp.ones((batch, 64, 64, 3))
        np.testing.assert_allclose(exported.call(params, ones), model(ones), rtol=1e-4, atol=1e-5)


def test_derivatives_are_of_the_whole_batch(model: twins_jax.TwinsClassifier, images: jax.Array) -> None:
    apply, params = twins_jax.split_model(model)

    def loss(params: twins_jax.Params, images: jax.Array) -> jax.Array:
        return jnp.square(apply(params, images)).mean()

    gradients = jax.jit(jax.grad(loss))
    assert "stablehlo.while" not in gradients.lower(params, images).as_text()
    one_by_one = [gradients(params, image[None]) for image in images]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *one_by_one)
    for leaf, expected in zip(jax.tree.leaves(gradients(params, images)), jax.tree.leaves(mean), strict=True):
        # Of each leaf's own largest value: the first stage's queries have 1e-5 of the gradient of the head.
        bound = 64 * jnp.finfo(jnp.float32).eps * jnp.abs(expected).max()
        np.testing.assert_allclose(leaf, expected, rtol=0, atol=float(bound))


def test_directional_derivatives_work_through_chunks(model: twins_jax.TwinsClassifier, images: jax.Array) -> None:
    apply, params = twins_jax.split_model(model)
    _, tangent = jax.jit(lambda x: jax.jvp(lambda x: apply(params, x), (x,), (jnp.ones_like(x),)))(images)
    _, expected = jax.jvp(model, (images,), (jnp.ones_like(images),))
    np.testing.assert_allclose(tangent, expected, rtol=1e-4, atol=1e-5 * float(jnp.abs(expected).max()))
