import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import twins_jax
from tests.support.batch_norm import Normed
from tests.support.models import IMAGES, PCPVT, SVT, classifier, named, random_array, relative_error, run


def test_apply_equals_the_model(logits: jax.Array) -> None:
    model = classifier(SVT)
    np.testing.assert_array_equal(nnx.jit(lambda model, images: model(images))(model, IMAGES), logits)


def test_apply_with_a_key_equals_the_model_with_rngs() -> None:
    model, key = classifier(dataclasses.replace(PCPVT, drop_path_rate=0.5)), jax.random.key(3)
    run_model = nnx.jit(lambda model, images, rngs: model(images, rngs=rngs))
    # Of other draws the difference is of the size of the values. The two programs may round in another order.
    assert relative_error(run(model, IMAGES, key), run_model(model, IMAGES, nnx.Rngs(dropout=key))) < 4e-6


def test_params_are_nested_dicts_with_string_keys() -> None:
    def check(tree: object) -> None:
        if isinstance(tree, dict):
            assert all(type(key) is str for key in tree)
            for value in tree.values():
                check(value)
        else:
            assert isinstance(tree, jax.Array)

    _, params = twins_jax.split_model(classifier(PCPVT))
    check(params)
    assert params["backbone"]["stages"]["0"]["peg"]["kernel"].shape == (3, 3, 1, 16)


def test_a_models_state_is_its_parameters_only() -> None:
    state = nnx.state(classifier(dataclasses.replace(SVT, drop_path_rate=0.5, dropout_rate=0.5)))
    leaves = jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    assert {type(leaf) for leaf in leaves} == {nnx.Param}


def test_params_are_a_snapshot_of_the_model() -> None:
    model = classifier(PCPVT)
    _, params = twins_jax.split_model(model)
    twins_jax.set_params(model, jax.tree.map(np.zeros_like, params))
    assert all(values.any() for values in named(params).values())
    assert not any(values.any() for values in named(twins_jax.get_params(model)).values())


def test_set_params_puts_in_what_get_params_takes_out() -> None:
    model = classifier(PCPVT)
    expected = jax.tree.map(lambda leaf: np.asarray(leaf) + 1, twins_jax.get_params(model))
    twins_jax.set_params(model, expected)
    actual = named(twins_jax.get_params(model))
    assert actual.keys() == named(expected).keys()
    for path, values in named(expected).items():
        np.testing.assert_array_equal(actual[path], values)


class Dropped(nnx.Module):
    """A Dropout, called as a model."""

    def __init__(self) -> None:
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None) -> jax.Array:
        return self.dropout(images, rngs=rngs)


def test_keys_of_every_form_draw_the_same() -> None:
    apply, params = twins_jax.split_model(Dropped())
    old = jax.random.PRNGKey(3)
    expected = apply(params, jnp.ones(64), jax.random.key(3))
    assert 0 < jnp.count_nonzero(expected) < 64
    for key in (old, np.asarray(old), np.asarray(old).astype(">u4")):
        np.testing.assert_array_equal(apply(params, jnp.ones(64), key), expected)


def test_running_statistics_are_split_off() -> None:
    model, images, key = Normed(5, rngs=nnx.Rngs(0)), random_array(4, 32, 32, 3), jax.random.key(0)
    expected, untouched = model(images), named(twins_jax.get_batch_stats(model))
    apply, params, batch_stats = twins_jax.split_model(model)
    names = {"embed/kernel", "embed/bias", "bn/scale", "bn/bias", "head/kernel", "head/bias"}
    assert set(named(params)) == names
    assert set(named(batch_stats)) == {"bn/mean", "bn/var"}
    np.testing.assert_allclose(jax.jit(apply)(params, batch_stats, images), expected, rtol=1e-5)

    logits, moved = jax.jit(apply)(params, batch_stats, images, key)
    by_model = model(images, rngs=nnx.Rngs(dropout=key))
    np.testing.assert_allclose(logits, by_model, rtol=1e-4, atol=1e-6)
    for path, values in named(twins_jax.get_batch_stats(model)).items():
        np.testing.assert_allclose(named(moved)[path], values, rtol=1e-5, atol=1e-7)
        assert np.abs(values - untouched[path]).max() > 1e-4  # a step's share of the batch's statistics
        np.testing.assert_array_equal(named(batch_stats)[path], untouched[path])
