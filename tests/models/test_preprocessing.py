"""Class names and preprocessing as attributes of a model."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import twins_jax
from tests.support.models import SVT, classifier
from twins_jax import InputError
from twins_jax.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

NAMES = tuple("abcdefghij")


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        *(("image_size", value, "an integer from 32") for value in (31, 0, 224.0, "224", None)),
        *(("crop", value, "a fraction in") for value in (0, 1.01, float("nan"), True, "0.9", None)),
        *(("mean", value, "a number for each channel") for value in (0.5, (), ("a",), (float("inf"),), None)),
        *(("std", value, "a positive number for each channel") for value in ((0, 1, 1), (1, 1, -1), "abc")),
        ("std", (0.5,), "as long as mean, 3"),
        *(("interpolation", value, "one of nearest, bilinear, bicubic") for value in ("random", "", 3, [])),
    ],
)
def test_fields_are_checked(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(InputError) as caught:
        Preprocessing(**{field: value})
    assert str(caught.value).startswith(f"{field}={value!r}: must be {allowed}")


def test_fields_are_normalized() -> None:
    assert Preprocessing(mean=[1, np.float32(0.5)], std=[1, 2]) == Preprocessing(mean=(1.0, 0.5), std=(1.0, 2.0))  # type: ignore[arg-type]
    assert Preprocessing() == Preprocessing(224, 0.875, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")
    np.testing.assert_array_equal(
        np.float32([Preprocessing().mean, Preprocessing().std]), [IMAGENET_MEAN, IMAGENET_STD]
    )


def test_attributes_are_no_part_of_the_traced_function() -> None:
    model = classifier(SVT)
    assert (model.class_names, model.preprocessing) == (None, None)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    apply, params = twins_jax.split_model(model)
    before = jax.make_jaxpr(apply)(params, images)
    traces = []
    traced = jax.jit(lambda *arguments: traces.append(1) or apply(*arguments))
    traced.eval_shape(params, images)

    model.class_names, model.preprocessing = NAMES, Preprocessing(image_size=64)
    traced.eval_shape(params, images)
    assert traces == [1]
    apply, same = twins_jax.split_model(model)
    assert jax.tree.structure(same) == jax.tree.structure(params)
    assert str(jax.make_jaxpr(apply)(params, images)) == str(before)


def test_attributes_stay_with_copies_of_a_model() -> None:
    model = classifier(SVT)
    model.class_names, model.preprocessing = NAMES, Preprocessing(image_size=64)
    graphdef, state = nnx.split(model)
    for copy in (nnx.merge(graphdef, state), nnx.eval_shape(lambda: nnx.merge(graphdef, state)), nnx.clone(model)):
        assert (copy.class_names, copy.preprocessing) == (NAMES, Preprocessing(image_size=64))
    assert hash(graphdef) == hash(nnx.graphdef(nnx.clone(model)))
