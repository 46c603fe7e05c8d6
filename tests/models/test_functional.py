import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import twins_jax
from tests.models.helpers import named, random_array, run, tiny, tiny_backbone

IMAGES = random_array(2, 40, 40, 3)


def test_apply_equals_the_model() -> None:
    model = tiny(drop_path_rate=0.5)
    apply, params = twins_jax.split_model(model)
    # Both run op by op, and so round alike.
    np.testing.assert_array_equal(apply(params, IMAGES), model(IMAGES))
    key = jax.random.key(3)
    np.testing.assert_array_equal(apply(params, IMAGES, key), model(IMAGES, rngs=nnx.Rngs(dropout=key)))


def test_apply_of_a_backbone_gives_its_maps() -> None:
    maps = run(tiny_backbone(), IMAGES)
    assert [m.shape for m in maps] == [(2, 10, 10, 32), (2, 5, 5, 64), (2, 2, 2, 128), (2, 1, 1, 256)]


def test_params_are_nested_dicts_with_string_keys() -> None:
    def check(tree: object) -> None:
        if isinstance(tree, dict):
            assert all(type(key) is str for key in tree)
            for value in tree.values():
                check(value)
        else:
            assert isinstance(tree, jax.Array)

    _, params = twins_jax.split_model(tiny())
    check(params)
    assert params["backbone"]["stages"]["0"]["peg"]["kernel"].shape == (3, 3, 1, 32)


def test_a_models_state_is_its_parameters_only() -> None:
    state = nnx.state(tiny(drop_path_rate=0.5, dropout_rate=0.5))
    assert all(
        isinstance(leaf, nnx.Param) for leaf in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    )


def test_apply_does_not_depend_on_the_models_own_parameters() -> None:
    model = tiny()
    apply, params = twins_jax.split_model(model)
    before = apply(params, IMAGES)
    twins_jax.set_params(model, jax.tree.map(jnp.zeros_like, params))
    np.testing.assert_array_equal(apply(params, IMAGES), before)


def test_set_params_puts_back_what_get_params_took() -> None:
    params = twins_jax.get_params(tiny())
    other = jax.tree.map(lambda leaf: leaf + 1, params)
    model = tiny()
    twins_jax.set_params(model, other)
    expected, actual = named(other), named(twins_jax.get_params(model))
    assert actual.keys() == expected.keys()
    for path, values in expected.items():
        np.testing.assert_array_equal(actual[path], values)


def test_params_of_another_model_do_not_fit() -> None:
    with pytest.raises(ValueError, match="leaves|structure|key"):
        twins_jax.set_params(tiny(num_classes=0), twins_jax.get_params(tiny_backbone()))
