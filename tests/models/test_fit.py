"""Parameters that do not fit a model are refused by name; `strict=False` says what was not used."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

import twins_jax
from tests.support.batch_norm import Normed
from tests.support.models import IMAGES, PCPVT, classifier, named
from twins_jax import InputError, TwinsClassifier

MODEL = classifier(PCPVT)
NAMES = named(twins_jax.get_params(MODEL))
HEAD = {"head/kernel": "(64, 10)", "head/bias": "(10,)"}


def changed(**changes: Any) -> dict[str, Any]:
    """The model's own parameters with others in the head, by "kernel" or "bias"; None: left out."""
    params = twins_jax.get_params(MODEL)
    head = {name: value for name, value in (params["head"] | changes).items() if value is not None}
    return params | {"head": head}


class Tensor:
    """PyTorch's, as far as it is asked."""

    def detach(self) -> "Tensor":
        return self


WRONG = {
    "missing": (changed(bias=None), ["  - head/bias (10,) is missing"]),
    "left over": (changed(scale=np.ones(3)), ["  + head/scale (3,) is left over"]),
    "renamed": (
        changed(bias=None, offset=NAMES["head/bias"]),
        ["  - head/bias (10,) is missing", "  + head/offset (10,) is left over"],
    ),
    "shape": (changed(kernel=np.ones((10, 64))), ["  ! head/kernel has shape (10, 64), expected (64, 10)"]),
    "shape that broadcasts": (changed(bias=np.ones(1)), ["  ! head/bias has shape (1,), expected (10,)"]),
    "integers": (changed(bias=np.arange(10)), ["  ! head/bias has dtype int64, expected floating-point"]),
    "list": (changed(bias=[0.0] * 10), ["  ! head/bias holds list, expected an array (10,): np.asarray(list)"]),
    "masked": (
        changed(bias=np.ma.array(np.ones(10), mask=True)),
        ["  ! head/bias has masked values, expected all of them"],
    ),
    "tensor": (
        changed(bias=Tensor()),
        ["  ! head/bias holds Tensor, expected an array (10,): np.asarray(tensor.detach().float().cpu())"],
    ),
    "text": (changed(bias="zeros"), ["  ! head/bias holds str, expected an array (10,)"]),
    "dict": (
        changed(bias={"value": NAMES["head/bias"]}),
        ["  - head/bias (10,) is missing", "  + head/bias/value (10,) is left over"],
    ),
    "array for a module": (
        twins_jax.get_params(MODEL) | {"head": np.ones(3)},
        [*(f"  - {name} {shape} is missing" for name, shape in sorted(HEAD.items())), "  + head (3,) is left over"],
    ),
    "None for a module": (
        twins_jax.get_params(MODEL) | {"head": None},
        [*(f"  - {name} {shape} is missing" for name, shape in sorted(HEAD.items())), "  + head NoneType is left over"],
    ),
}


def set_in(params: Any) -> None:
    twins_jax.set_params(classifier(PCPVT), params)


def merge(params: Any) -> None:
    twins_jax.merge_model(nnx.graphdef(MODEL), params)


def trace(params: Any) -> None:
    apply, _ = twins_jax.split_model(MODEL)
    jax.eval_shape(lambda images: apply(params, images), IMAGES)


@pytest.mark.parametrize("enter", [set_in, merge, trace])
@pytest.mark.parametrize(("params", "problems"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_listed(enter: Callable[[Any], None], params: Any, problems: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        enter(params)
    assert str(caught.value).splitlines() == [f"params: {len(problems)} arrays do not fit the model", *problems]


@pytest.mark.parametrize("enter", [set_in, merge])
@pytest.mark.parametrize(
    ("params", "message"),
    [
        (None, r"params=<class 'NoneType'>: must be nested dicts of arrays"),
        ([np.ones(3)], r"params=<class 'list'>: must be nested dicts"),
        (IMAGES, r"params=<class 'numpy.ndarray'>: must be nested dicts"),
        ({"head": {("kernel",): np.ones(3)}}, r"params: a key below 'head'=\('kernel',\): must be a string"),
        ({"stages": {0: 1.0, "0": 2.0}}, r"params: holds stages/0 twice"),
    ],
)
def test_what_is_no_nested_dict(enter: Callable[[Any], None], params: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        enter(params)


def test_nothing_changes_where_parameters_are_refused() -> None:
    model = classifier(PCPVT)
    with pytest.raises(InputError):
        twins_jax.set_params(model, jax.tree.map(jnp.zeros_like, changed(bias=None)))
    for name, values in named(twins_jax.get_params(model)).items():
        np.testing.assert_array_equal(values, NAMES[name])


def test_not_strict_puts_in_what_fits() -> None:
    model = classifier(PCPVT)
    params = jax.tree.map(np.zeros_like, changed(bias=None)) | {"other": {"bias": np.ones(3)}}
    params["norm"] = {"scale": np.ones((2, 64), np.float32), "bias": "text"}
    result = twins_jax.set_params(model, params, strict=False)
    assert sorted(result.missing) == ["head/bias", "norm/bias", "norm/scale"]
    assert sorted(result.unused) == ["norm/bias", "norm/scale", "other/bias"]
    for name, values in named(twins_jax.get_params(model)).items():
        np.testing.assert_array_equal(values, NAMES[name] if name in result.missing else 0, name)
    assert twins_jax.set_params(model, twins_jax.get_params(MODEL), strict=False) == ((), ())


OTHER_FORMS: dict[str, Callable[[nnx.Module], Any]] = {
    "nnx.state": lambda model: nnx.state(model, nnx.Param),
    "nnx.to_pure_dict": lambda model: nnx.to_pure_dict(nnx.state(model)),
    "paths": lambda model: traverse_util.flatten_dict(twins_jax.get_params(model), sep="/"),
}


@pytest.mark.parametrize("form", OTHER_FORMS.values(), ids=OTHER_FORMS)
def test_the_forms_of_nnx_fit(form: Callable[[nnx.Module], Any]) -> None:
    """Integers for the keys of lists, variables for arrays, paths for nested dicts."""
    model = nnx.eval_shape(lambda: TwinsClassifier(PCPVT, 10, rngs=nnx.Rngs(0)))
    twins_jax.set_params(model, form(MODEL))
    for found in (model, twins_jax.merge_model(nnx.graphdef(MODEL), form(MODEL))):
        for name, values in named(twins_jax.get_params(found)).items():
            np.testing.assert_array_equal(values, NAMES[name])


def test_set_params_casts_to_the_dtypes_of_the_model() -> None:
    model, wide = classifier(PCPVT), jax.tree.map(lambda x: np.asarray(x, np.float64), twins_jax.get_params(MODEL))
    wide["head"]["bias"] = wide["head"]["bias"].astype(jnp.bfloat16)
    twins_jax.set_params(model, wide)
    assert {leaf.dtype for leaf in jax.tree.leaves(twins_jax.get_params(model))} == {np.dtype(np.float32)}
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(twins_jax.get_params(model)))


def test_merge_model_keeps_arrays_as_they_are() -> None:
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), twins_jax.get_params(MODEL))
    merged = twins_jax.merge_model(nnx.graphdef(MODEL), params)
    assert merged.head.kernel.get_value() is params["head"]["kernel"]


@pytest.mark.parametrize("dtype", [">f4", np.longdouble])
def test_arrays_of_numpy_that_jax_does_not_know(dtype: Any) -> None:
    given = jax.tree.map(lambda x: np.asarray(x).astype(dtype), twins_jax.get_params(MODEL))
    model = nnx.eval_shape(lambda: TwinsClassifier(PCPVT, 10, rngs=nnx.Rngs(0)))
    twins_jax.set_params(model, given)
    for found in (model, twins_jax.merge_model(nnx.graphdef(MODEL), given)):
        for name, values in named(twins_jax.get_params(found)).items():
            np.testing.assert_array_equal(jnp.asarray(values), NAMES[name])


def test_shapes_fit_abstract_models_only() -> None:
    abstract = nnx.eval_shape(lambda: TwinsClassifier(PCPVT, 10, rngs=nnx.Rngs(0)))
    shapes = twins_jax.get_params(abstract)
    twins_jax.set_params(abstract, shapes)
    with pytest.raises(InputError, match="head/bias holds ShapeDtypeStruct"):
        twins_jax.set_params(classifier(PCPVT), shapes)


def test_running_statistics_must_fit() -> None:
    model = Normed(5, rngs=nnx.Rngs(0))
    apply, params, batch_stats = twins_jax.split_model(model)
    for wrong, line in (
        ({}, r"  - bn/mean \(8,\) is missing\n  - bn/var \(8,\) is missing"),
        ({"bn": batch_stats["bn"] | {"mean": np.ones(1)}}, r"  ! bn/mean has shape \(1,\), expected \(8,\)"),
    ):
        with pytest.raises(InputError, match=rf"^batch_stats: \d arrays do not fit the model\n{line}"):
            jax.jit(apply)(params, wrong, IMAGES)
