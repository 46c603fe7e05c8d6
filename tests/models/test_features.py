"""The halves of a classifier's call, blocks' outputs, fresh heads, and methods as pure functions."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import twins_jax
from tests.support.models import IMAGES, PCPVT, SVT, backbone, classifier, named, random_array
from twins_jax import FeatureInfo, InputError, TwinsBackbone, TwinsClassifier
from twins_jax.backbone import Stage
from twins_jax.layers import Linear

SMALL = random_array(2, 32, 38, 3)


def test_the_halves_make_the_call(logits: jax.Array) -> None:
    model = classifier(SVT)
    apply, params = twins_jax.split_model(model, TwinsClassifier.forward_features)
    features = jax.jit(apply)(params, IMAGES)
    assert features.shape == (2, 1, 2, model.num_features) == (2, 1, 2, 64)
    np.testing.assert_allclose(model.forward_head(features), logits, rtol=1e-5, atol=1e-5)
    pooled = model.forward_head(np.asarray(features), pre_logits=True)
    np.testing.assert_allclose(pooled, np.asarray(features).mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)
    model.reset_classifier(0)
    np.testing.assert_array_equal(model.forward_head(features), pooled)


def test_a_call_is_computed_as_before() -> None:
    """The program has the operations of the call, which was one expression, in the same order."""
    model = classifier(SVT)
    graphdef, params = nnx.graphdef(model), twins_jax.get_params(model)

    def call(params: Any, images: jax.Array) -> jax.Array:
        merged = twins_jax.merge_model(graphdef, params)
        features = merged.norm(merged.backbone(images)[-1]).mean(axis=(1, 2))
        return merged.head(features)

    apply, _ = twins_jax.split_model(model)
    assert str(jax.make_jaxpr(apply)(params, IMAGES)) == str(jax.make_jaxpr(call)(params, IMAGES))


@pytest.mark.parametrize(
    ("config", "norms"), [(SVT, False), (dataclasses.replace(PCPVT, stage_norms=True, remat=True), True)]
)
def test_outputs_of_blocks(config: twins_jax.TwinsConfig, norms: bool) -> None:
    model = backbone(config)

    def walk(model: TwinsBackbone, images: jax.Array, rngs: None) -> list[jax.Array]:
        del rngs
        x, outputs = images, []
        for i, stage in enumerate(model.stages):
            x = stage.patch_embed(x)
            for block in stage.blocks:
                x = block(x)
                outputs.append(x)
                if len(outputs) in (1, *(1 + info.last_block + 1 for info in model.feature_info)):
                    x = stage.peg(x)
            x = model.norms[i](x) if norms else x
        return outputs

    expected = run_method(model, walk, SMALL)
    total = len(expected)
    assert total == sum(config.depths)
    chosen = [-1, 1, 1, -total] if norms else None
    found = run_method(model, functools.partial(TwinsBackbone.intermediates, blocks=chosen), SMALL)
    assert len(found) == len(chosen or expected)
    for index, output in zip(chosen or range(total), found, strict=True):
        np.testing.assert_allclose(output, expected[index], rtol=1e-4, atol=1e-5)


def run_method(model: nnx.Module, method: Any, images: np.ndarray) -> Any:
    apply, params = twins_jax.split_model(model, method)
    return jax.jit(apply)(params, images)


def test_stages_after_the_last_block_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen, call = classifier(SVT), [], Stage.__call__

    def counted(stage: Stage, *args: Any) -> jax.Array:
        seen.append(stage.patch_size)
        return call(stage, *args)

    monkeypatch.setattr(Stage, "__call__", counted)
    (output,) = jax.eval_shape(lambda images: model.intermediates(images, range(2, 3)), SMALL)
    assert output.shape == (2, 4, 4, 32)
    assert seen == [4, 2]


def test_blocks_outputs_draw_as_the_call_does() -> None:
    key = jax.random.key(3)

    def last(model: TwinsBackbone, images: jax.Array, rngs: nnx.Rngs) -> tuple[jax.Array, jax.Array, jax.Array]:
        (output,) = model.intermediates(images, [-1], rngs=rngs)
        called, still = (model(images, rngs=of_call)[-1] for of_call in (nnx.Rngs(dropout=key), None))
        return model.stages[-1].peg(output), called, still

    apply, params = twins_jax.split_model(backbone(dataclasses.replace(PCPVT, drop_path_rate=0.9)), last)
    output, called, still = jax.jit(apply)(params, SMALL, key)
    np.testing.assert_allclose(output, called, rtol=1e-4, atol=1e-5)
    assert (called != still).any()


def test_feature_info_is_that_of_the_maps() -> None:
    model = nnx.eval_shape(lambda: twins_jax.create_backbone("twins_svt_tiny", rngs=nnx.Rngs(0)))
    apply, params = twins_jax.split_model(model)
    maps = jax.eval_shape(apply, params, random_array(1, 64, 96, 3))
    assert [FeatureInfo(m.shape[3], 64 // m.shape[1], 2 * i + 1) for i, m in enumerate(maps)] == [*model.feature_info]
    assert model.num_features == maps[-1].shape[3]


def shape_of_logits(model: TwinsClassifier) -> tuple[int, ...]:
    return jax.eval_shape(lambda images: model(images), SMALL).shape  # a new function: JAX remembers the model's trace


def test_a_fresh_head() -> None:
    model = classifier(SVT)
    model.class_names = tuple("0123456789")
    before = named(twins_jax.get_params(model.backbone))
    model.reset_classifier(np.int64(7), rngs=nnx.Rngs(5))  # type: ignore[arg-type]
    assert (model.num_classes, type(model.num_classes), model.class_names) == (7, int, None)
    expected = Linear(64, 7, rngs=nnx.Rngs(5))
    np.testing.assert_array_equal(model.head.kernel[...], expected.kernel[...])
    apply, params = twins_jax.split_model(model)
    assert jax.eval_shape(apply, params, SMALL).shape == (2, 7)
    for path, values in named(twins_jax.get_params(model.backbone)).items():
        np.testing.assert_array_equal(values, before[path])

    model.reset_classifier(0)
    model.reset_classifier(0)
    assert not any(path.startswith("head") for path in named(twins_jax.get_params(model)))
    assert shape_of_logits(model) == (2, 64)
    model.reset_classifier(3, rngs=nnx.Rngs(0))
    assert shape_of_logits(model) == (2, 3)


def test_a_fresh_head_has_the_models_dtypes() -> None:
    model = classifier(dataclasses.replace(SVT, dtype=jnp.bfloat16, param_dtype=jnp.float16))
    model.reset_classifier(7, rngs=nnx.Rngs(0))
    assert model.head.kernel.dtype == jnp.float16
    assert jax.eval_shape(model, SMALL).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("num_classes", "rngs", "message"),
    [
        (-1, nnx.Rngs(0), "num_classes=-1: must be an integer from 0 to "),
        (True, nnx.Rngs(0), "num_classes=True: must be"),
        (7.0, nnx.Rngs(0), "num_classes=7.0: must be"),
        (7, None, "rngs=None: must be given for the fresh head of num_classes=7"),
        (7, jax.random.key(0), "rngs=.*: must be nnx.Rngs"),
        (7, nnx.Rngs(dropout=0), "rngs=.*: must be nnx.Rngs with the stream 'params'"),
    ],
)
def test_a_refused_head_changes_nothing(num_classes: Any, rngs: Any, message: str) -> None:
    model = classifier(SVT)
    model.class_names = ("one",)
    kernel = model.head.kernel
    with pytest.raises(InputError, match=message):
        model.reset_classifier(num_classes, rngs=rngs)
    assert (model.num_classes, model.class_names, model.head.kernel) == (10, ("one",), kernel)


@pytest.mark.parametrize("blocks", [[], 3, "ab", [5], [-6], [True], [1.0], [None], {1}, np.array([1])])
def test_refused_blocks(blocks: Any) -> None:
    with pytest.raises(InputError, match=r"blocks=.*: must be None or a sequence of indices from -5 to 4"):
        classifier(SVT).intermediates(SMALL, blocks)


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (np.zeros((2, 64)), {}, r"features.shape=\(2, 64\): must be \[B, h, w, 64\]"),
        (np.zeros((2, 49, 64)), {}, "features.shape"),
        (np.zeros((2, 64, 7, 7)), {}, "features.shape"),
        (np.zeros((2, 0, 7, 64)), {}, "features.shape"),
        ("map", {}, "features"),
        (np.zeros((2, 7, 7, 64)), {"pre_logits": 1}, "pre_logits=1: must be True or False"),
    ],
)
def test_refused_features(features: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        classifier(SVT).forward_head(features, **options)


def test_no_images_have_no_logits() -> None:
    assert classifier(SVT).forward_head(jnp.zeros((0, 1, 2, 64))).shape == (0, 10)


@pytest.mark.parametrize("method", ["forward_features", 3, classifier(PCPVT).forward_features])
def test_refused_methods(method: Any) -> None:
    message = "method=.*: must be None or a function of the model: TwinsClassifier.METHOD"
    with pytest.raises(InputError, match=message):
        twins_jax.split_model(classifier(PCPVT), method)
