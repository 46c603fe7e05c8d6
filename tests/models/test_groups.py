"""Layer groups against timm's, and filters of stages in NNX and in optax."""

import dataclasses
import importlib
import math
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, traverse_util

import twins_jax
from tests.support.models import PCPVT, SVT, backbone, classifier
from twins_jax import InputError


class Own(nnx.Module):
    """A user's model, with the backbone under a name of the user's."""

    def __init__(self, encoder: nnx.Module) -> None:
        self.encoder = encoder
        self.norms = nnx.List([nnx.LayerNorm(4, rngs=nnx.Rngs(0))])
        self.stages = nnx.List([nnx.Linear(4, 4, rngs=nnx.Rngs(0))])


NORMED = backbone(dataclasses.replace(SVT, stage_norms=True))


def by_path(tree: dict[str, Any]) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/")


@pytest.mark.parametrize("variant", ["twins_pcpvt_small", "twins_svt_small"])
def test_layers_are_timms(timm: ModuleType, variant: str) -> None:
    rules = importlib.import_module("twins_jax.port.rules")
    with importlib.import_module("torch").device("meta"):
        theirs = timm.create_model(variant)
    names = {id(parameter): name for name, parameter in theirs.named_parameters()}
    expected = {}
    for group in importlib.import_module("timm.optim").param_groups_layer_decay(theirs, layer_decay=0.5):
        for parameter in group["params"]:
            path = rules.TORCH.to_ours(names[id(parameter)]).name
            expected[path] = sum(theirs.depths) + 1 + math.log2(group["lr_scale"])
    ours = nnx.eval_shape(lambda: twins_jax.create_model(variant, rngs=nnx.Rngs(0)))
    assert by_path(twins_jax.layer_groups(ours)) == expected


def test_layers_are_like_params() -> None:
    model = classifier(SVT)
    assert jax.tree.structure(twins_jax.layer_groups(model)) == jax.tree.structure(twins_jax.get_params(model))


def test_layers_of_a_backbone_and_of_a_users_model() -> None:
    of_classifier = by_path(twins_jax.layer_groups(classifier(SVT)))
    of_backbone = {
        path.removeprefix("backbone/"): n for path, n in of_classifier.items() if path.startswith("backbone")
    }
    assert by_path(twins_jax.layer_groups(backbone(SVT))) == of_backbone
    expected = {f"encoder/{path}": layer for path, layer in of_backbone.items()}
    expected |= dict.fromkeys(("norms/0/bias", "norms/0/scale", "stages/0/bias", "stages/0/kernel"), 6)
    assert by_path(twins_jax.layer_groups(Own(backbone(SVT)))) == expected
    assert by_path(twins_jax.layer_groups(Own(classifier(SVT))))["encoder/norm/scale"] == 5


def test_a_stages_norm_is_with_its_last_block() -> None:
    layers = twins_jax.layer_groups(NORMED)
    assert [norm["scale"] for norm in layers["norms"].values()] == [2, 3, 4, 5]


@pytest.mark.parametrize("stage", range(5))
@pytest.mark.parametrize("wrapped", [False, True])
def test_stages_are_their_layers(stage: int, wrapped: bool) -> None:
    """Two definitions of the same: stages by name, and layers by number."""
    model = Own(NORMED) if wrapped else NORMED
    first = (0, 3, 4, 5, 6)[stage]  # layer of the stage
    expected = {path: layer < first for path, layer in by_path(twins_jax.layer_groups(model)).items()}
    selected = twins_jax.stages_below(model, stage)
    assert by_path(twins_jax.param_mask(twins_jax.get_params(model), selected)) == expected
    assert len(jax.tree.leaves(nnx.state(model, selected))) == sum(expected.values())
    assert selected == twins_jax.stages_below(model, stage)
    assert hash(selected) == hash(twins_jax.stages_below(model, stage))  # transforms of NNX compare filters


def squares(tree: Any) -> jax.Array:
    """A loss in which every parameter has a gradient."""
    return sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree))


def check_moved(before: dict[str, Any], after: dict[str, Any], selected: Any) -> None:
    for path, is_frozen in by_path(twins_jax.param_mask(before, selected)).items():
        old, new = (np.asarray(by_path(params)[path]) for params in (before, after))
        assert (old == new).all() if is_frozen else (old != new).any(), path


def shapes(tree: Any) -> list[tuple[int, ...]]:
    return sorted(leaf.shape for leaf in jax.tree.leaves(tree) if leaf.ndim)


def test_frozen_stages_in_a_loop_of_nnx() -> None:
    model = classifier(PCPVT)
    before, frozen = twins_jax.get_params(model), twins_jax.stages_below(model, 3)
    trained = nnx.All(nnx.Param, nnx.Not(frozen))
    optimizer = nnx.Optimizer(model, optax.adamw(0.1), wrt=trained)
    assert shapes(nnx.state(optimizer, nnx.OptState)) == sorted(2 * shapes(nnx.state(model, trained)))

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer) -> None:
        gradients = nnx.grad(lambda model: squares(nnx.state(model)), argnums=nnx.DiffState(0, trained))(model)
        optimizer.update(model, gradients)

    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to its int32 count
        step(model, optimizer)
    check_moved(before, twins_jax.get_params(model), frozen)


def test_frozen_stages_in_optax() -> None:
    model = classifier(PCPVT)
    _, params = twins_jax.split_model(model)
    frozen = nnx.Any(twins_jax.stages_below(model, 2), nnx.PathContains("head"))
    mask = twins_jax.param_mask(params, frozen)
    optimizer = optax.multi_transform({True: optax.set_to_zero(), False: optax.adamw(0.1)}, mask)
    state = optimizer.init(params)
    trained = [leaf for leaf, is_frozen in zip(*map(jax.tree.leaves, (params, mask)), strict=True) if not is_frozen]
    assert shapes(state) == sorted(2 * shapes(trained))

    @jax.jit
    def step(params: dict[str, Any], state: Any) -> dict[str, Any]:
        updates, _ = optimizer.update(jax.grad(squares)(params), state, params)
        return optax.apply_updates(params, updates)

    with jax.numpy_dtype_promotion("standard"):
        check_moved(params, step(params, state), frozen)


def test_masks_of_filters_of_nnx() -> None:
    params = twins_jax.get_params(classifier(PCPVT))
    assert all(jax.tree.leaves(twins_jax.param_mask(params, nnx.Param)))
    assert not any(jax.tree.leaves(twins_jax.param_mask(params, nnx.BatchStat)))
    third = by_path(twins_jax.param_mask(params, nnx.PathContains(2)))
    assert [path for path, selected in third.items() if selected] == [path for path in third if "/stages/2/" in path]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: twins_jax.layer_groups(nnx.Linear(2, 3, rngs=nnx.Rngs(0))), "model=.*a model with a TwinsBackbone"),
        (lambda: twins_jax.layer_groups({}), "model=.*must be a model, an nnx.Module"),
        (lambda: twins_jax.stages_below(nnx.Dict(), 1), "model=.*a model with a TwinsBackbone in it"),
        (lambda: twins_jax.stages_below(NORMED, 5), "stage=5: must be an integer from 0 to 4"),
        (lambda: twins_jax.stages_below(NORMED, -1), "stage=-1: must be an integer from 0 to 4"),
        (lambda: twins_jax.param_mask([1], nnx.Param), "params=.*nested dicts"),
        (lambda: twins_jax.param_mask({}, 3), "selected=3: must be a filter of NNX"),
    ],
)
def test_refused_arguments(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
