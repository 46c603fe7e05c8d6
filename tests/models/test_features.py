"""The halves of a classifier's call, blocks' outputs, fresh heads, and methods as pure functions."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import twins_jax
from tests.support.models import IMAGES, SVT, backbone, classifier, named, random_array
from twins_jax import FeatureInfo, InputError, Preprocessing, TwinsBackbone, TwinsClassifier
from twins_jax.backbone import Stage
from twins_jax.layers import Linear

SMALL = random_array(2, 32, 38, 3)
MODEL = nnx.eval_shape(lambda: TwinsClassifier(SVT, 10, rngs=nnx.Rngs(0)))
"""For calls that are refused."""


def trace(model: nnx.Module, method: Any, images: np.ndarray = SMALL, key: jax.Array | None = None) -> str:
    """The operations of method(model, images, rngs=...), in their order; two equal ones compute the same."""
    apply, params = twins_jax.split_model(model, method)
    return str(jax.make_jaxpr(apply)(params, images, key))


def test_the_halves_make_the_call() -> None:
    model = classifier(SVT)

    def halves(model: TwinsClassifier, images: jax.Array, rngs: None) -> tuple[jax.Array, jax.Array, jax.Array]:
        features = model.forward_features(images, rngs=rngs)
        return features, model.forward_head(features), model(images)

    apply, params = twins_jax.split_model(model, halves)
    features, by_halves, logits = jax.jit(apply)(params, IMAGES)
    assert features.shape == (2, 1, 2, model.num_features) == (2, 1, 2, 64)
    np.testing.assert_array_equal(by_halves, logits)
    pooled = model.forward_head(np.asarray(features), pre_logits=True)
    np.testing.assert_allclose(pooled, np.asarray(features).mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)
    expected = np.asarray(pooled) @ np.asarray(model.head.kernel[...]) + np.asarray(model.head.bias[...])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    model.reset_classifier(0)
    np.testing.assert_array_equal(model.forward_head(features), pooled)


@pytest.mark.parametrize("key", [None, jax.random.key(3)], ids=["still", "random"])
def test_a_call_is_computed_as_one_expression(key: jax.Array | None) -> None:
    def call(model: TwinsClassifier, images: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        return model.head(model.norm(model.backbone(images, rngs=rngs)[-1]).mean(axis=(1, 2)))

    model = classifier(dataclasses.replace(SVT, drop_path_rate=0.5))
    assert trace(model, None, key=key) == trace(model, call, key=key)


@pytest.mark.parametrize("chosen", [None, [-1, 1, 1, -5]])
@pytest.mark.parametrize("stage_norms", [False, True])
def test_outputs_of_blocks(chosen: list[int] | None, stage_norms: bool) -> None:
    def walk(model: TwinsBackbone, images: jax.Array, rngs: nnx.Rngs) -> tuple[jax.Array, ...]:
        x, outputs = images, []
        for i, stage in enumerate(model.stages):
            x = stage.patch_embed(x)
            for j, block in enumerate(stage.blocks):
                x = block(x, rngs)
                outputs.append(x)
                x = stage.peg(x) if j == 0 else x
            x = model.norms[i](x) if stage_norms else x
        return tuple(outputs if chosen is None else [outputs[index] for index in chosen])

    model = backbone(dataclasses.replace(SVT, drop_path_rate=0.5, stage_norms=stage_norms))
    method, key = functools.partial(TwinsBackbone.intermediates, blocks=chosen), jax.random.key(3)
    assert trace(model, method, key=key) == trace(model, walk, key=key)


def test_outputs_of_blocks_that_recompute_their_activations() -> None:
    model = backbone(dataclasses.replace(SVT, remat=True))
    assert len(re.findall(r"\b(?:remat|checkpoint)\w*\[", trace(model, TwinsBackbone.intermediates))) == 5


def test_stages_after_the_last_block_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen, call = classifier(SVT), [], Stage.__call__

    def counted(stage: Stage, *args: Any) -> jax.Array:
        seen.append(stage.patch_size)
        return call(stage, *args)

    monkeypatch.setattr(Stage, "__call__", counted)
    (output,) = jax.eval_shape(lambda images: model.intermediates(images, range(2, 3)), SMALL)
    assert output.shape == (2, 4, 4, 32)
    assert seen == [4, 2]


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
    model.class_names, model.multi_label = tuple("0123456789"), True
    before = named(twins_jax.get_params(model.backbone))
    model.reset_classifier(np.int64(7), rngs=nnx.Rngs(5))  # type: ignore[arg-type]
    assert (model.num_classes, type(model.num_classes), model.class_names) == (7, int, None)
    assert model.multi_label is False
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
    MODEL.class_names = names = tuple("0123456789")
    head = MODEL.head
    with pytest.raises(InputError, match=message):
        MODEL.reset_classifier(num_classes, rngs=rngs)
    assert (MODEL.num_classes, MODEL.class_names) == (10, names)
    assert MODEL.head is head


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("class_names", ("a",), r"class_names=\('a',\): must be None or 10 strings, one for each of num_classes$"),
        ("class_names", "0123456789", "class_names='0123456789': must be None or 10 strings"),
        ("class_names", list(range(10)), r"class_names=\[0, 1, .*: must be None or 10 strings"),
        ("class_names", {}, "class_names={}: must be"),
        ("multi_label", 1, "multi_label=1: must be True or False$"),
        ("preprocessing", {"mean": 3}, "preprocessing={'mean': 3}: must be None or a twins_jax.Preprocessing$"),
    ],
)
def test_attributes_that_are_refused(attribute: str, value: Any, message: str) -> None:
    before = getattr(MODEL, attribute)
    with pytest.raises(InputError, match=message):
        setattr(MODEL, attribute, value)
    assert getattr(MODEL, attribute) is before


def test_attributes_are_part_of_the_graph_definition() -> None:
    model = classifier(SVT)
    model.class_names, model.multi_label, model.preprocessing = list("0123456789"), True, Preprocessing(96)
    graphdef = nnx.graphdef(model)
    assert isinstance(hash(graphdef), int)  # a jitted function takes it as a static argument
    copy = twins_jax.merge_model(graphdef, twins_jax.get_params(model))
    assert (copy.class_names, copy.multi_label, copy.preprocessing) == (tuple("0123456789"), True, Preprocessing(96))


@pytest.mark.parametrize("blocks", [[], 3, "ab", [5], [-6], [True], [1.0], [None], {1}, np.array([1])])
def test_refused_blocks(blocks: Any) -> None:
    with pytest.raises(InputError, match=r"blocks=.*: must be None or a sequence of indices from -5 to 4"):
        MODEL.intermediates(SMALL, blocks)


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
        MODEL.forward_head(features, **options)


def test_no_images_have_no_logits() -> None:
    assert classifier(SVT).forward_head(jnp.zeros((0, 1, 2, 64))).shape == (0, 10)


@pytest.mark.parametrize("method", ["forward_features", 3, MODEL.forward_features])
def test_refused_methods(method: Any) -> None:
    message = "method=.*: must be None or a function of the model: TwinsClassifier.METHOD"
    with pytest.raises(InputError, match=message):
        twins_jax.split_model(MODEL, method)
