"""Models and the arithmetic of training under the modes in which JAX refuses what it else does silently."""

import contextlib
import dataclasses
import functools
import gc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import twins_jax
from tests.support.compilation import fast_compilation
from tests.support.models import PCPVT, SVT, random_array, random_module
from train.tasks.classification.config import MixConfig
from train.tasks.classification.losses import cross_entropy, smooth_targets
from train.tasks.classification.metrics import ClassificationEvaluator
from train.tasks.classification.mixing import mix, random_erase
from twins_jax.backbone import Stage
from twins_jax.layers import BatchNorm
from twins_jax.preprocess import normalize

DROPS = {"dropout_rate": 0.1, "drop_path_rate": 0.2}
CONFIGS = {
    "pcpvt": dataclasses.replace(PCPVT, **DROPS),
    "svt": dataclasses.replace(SVT, **DROPS),
    "svt, mask": dataclasses.replace(SVT, window_padding="mask", **DROPS),
    "stage norms": dataclasses.replace(SVT, stage_norms=True, dtype=jnp.bfloat16),
}
TRACING: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "dtype promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "leaked tracers": lambda: jax.checking_leaks(),
    "x64": lambda: jax.enable_x64(True),
}
IMAGES = random_array(2, 45, 70, 3)
KEY = jax.random.key(0)


def differentiate(model: nnx.Module) -> tuple[Callable[..., Any], Any]:
    """The value and the gradients of some function of all outputs, with dropout, and its first argument."""
    apply, params = twins_jax.split_model(model)

    def loss(params: Any, images: jax.Array, key: jax.Array) -> jax.Array:
        outputs = jax.tree.leaves(apply(params, images, key))
        return sum(jnp.square(output.astype(jnp.float32)).sum() for output in outputs)

    return jax.value_and_grad(loss, argnums=(0, 1)), params


# Ranks differ from layer to layer; one model with all kinds of layers is enough for the other modes.
TRACED = [(mode, config) for mode in TRACING for config in CONFIGS if mode == "rank promotion" or config == "svt, mask"]


@pytest.mark.parametrize(("mode", "variant"), TRACED)
def test_modes_that_act_when_a_model_is_traced(mode: str, variant: str) -> None:
    config = CONFIGS[variant]

    def make() -> nnx.Module:
        if config.stage_norms:
            return twins_jax.TwinsBackbone(config, rngs=nnx.Rngs(0))
        return twins_jax.TwinsClassifier(config, 10, rngs=nnx.Rngs(0))

    with TRACING[mode]():
        function, params = differentiate(nnx.eval_shape(make))
        _, (gradients, _) = jax.eval_shape(function, params, IMAGES, KEY)
    # Under x64 too a model computes in its own dtypes.
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {np.dtype(np.float32)}


def test_modes_that_act_when_a_model_runs() -> None:
    config = CONFIGS["svt, mask"]
    # The first stage has every kind of layer.
    stage = random_module(lambda: Stage(0, drop_path_rates=[0.0, 0.2], config=config, rngs=nnx.Rngs(0)))
    function, params = differentiate(stage)
    images = jax.device_put(IMAGES)
    with jax.debug_nans(True), jax.debug_infs(True), jax.transfer_guard("disallow"), fast_compilation():
        value, gradients = jax.jit(function)(params, images, KEY)
    assert value > 0
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("mode", TRACING.values(), ids=TRACING)
def test_the_arithmetic_of_training(mode: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
    evaluator = ClassificationEvaluator()

    def loss(weights: jax.Array, images: jax.Array, labels: jax.Array, key: jax.Array) -> Any:
        erase_key, mix_key = jax.random.split(key)
        erased = random_erase(erase_key, normalize(images), 0.5)
        targets = smooth_targets(labels, 7, 0.1)
        mixed, targets = mix(mix_key, erased, targets, MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0))
        mixed = BatchNorm(3)(mixed, training=True)

        def model(images: jax.Array) -> jax.Array:
            return images.mean(axis=(1, 2)) @ weights

        batch = {"image": images, "label": labels, "mask": labels > 1}
        return cross_entropy(model(mixed), targets).sum(), evaluator.step(model, batch)

    with mode():
        images, labels = np.zeros((4, 32, 32, 3), np.uint8), np.arange(4, dtype=np.int32)
        weights = jax.ShapeDtypeStruct((3, 7), jnp.float32)
        gradient, _ = jax.eval_shape(jax.grad(loss, has_aux=True), weights, images, labels, KEY)
    assert gradient.dtype == jnp.float32


def test_arrays_are_freed_without_the_garbage_collector() -> None:
    """Reference cycles would keep their memory, and `jax_array_garbage_collection_guard` would end the process."""
    abstract = nnx.eval_shape(lambda: twins_jax.TwinsClassifier(CONFIGS["svt"], 10, rngs=nnx.Rngs(0)))
    graphdef, shapes = nnx.graphdef(abstract), twins_jax.get_params(abstract)

    def use() -> None:
        model = twins_jax.merge_model(graphdef, jax.tree.map(lambda leaf: jnp.asarray(np.ones(leaf.shape)), shapes))
        function, params = differentiate(model)
        twins_jax.set_params(model, jax.tree.map(np.asarray, params))
        jax.eval_shape(functools.partial(function, params), IMAGES, KEY)

    use()  # JAX caches some small constants
    gc.collect()
    before = len(jax.live_arrays())
    gc.disable()
    try:
        use()
        assert len(jax.live_arrays()) == before
    finally:
        gc.enable()
