"""Bad input gives an error that names the argument, its value and what it must be."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest
from flax import nnx

import twins_jax
from twins_jax import InputError, TwinsBackbone, TwinsClassifier
from twins_jax.config import TwinsConfig, TwinsOptions, variant_config

CONFIG = variant_config("twins_svt_tiny")

BAD_ARGUMENTS = [
    ({"in_channels": 0}, r"in_channels=0: must be an integer from 1"),
    ({"drop_path_rate": 1.0}, r"drop_path_rate=1.0: must be a rate in \[0, 1\)"),
    ({"drop_path_rate": -0.1}, r"drop_path_rate=-0.1: must be a rate in \[0, 1\)"),
    ({"drop_path_rate": float("nan")}, r"drop_path_rate=nan: must be a rate in \[0, 1\)"),
    ({"dropout_rate": 1.5}, r"dropout_rate=1.5: must be a rate in \[0, 1\)"),
    ({"window_padding": "wrap"}, r"window_padding='wrap': must be one of zero, mask"),
    (
        {"attention_implementation": "flash"},
        r"attention_implementation='flash': must be one of auto, xla, pallas, cudnn",
    ),
    ({"dtype": jnp.int32}, r"dtype=.*int32.*: must be a floating-point dtype"),
    ({"dtype": "float33"}, r"dtype='float33': must be a floating-point dtype"),
    ({"dtype": None}, r"dtype=None: must be a floating-point dtype"),
    ({"param_dtype": "uint8"}, r"param_dtype='uint8': must be a floating-point dtype"),
    ({"nonsense": 1}, r"nonsense=1: must be left out, it is no option; the options are attention_implementation, .*"),
    ({"depths": (1, 1, 1, 1)}, r"depths=\(1, 1, 1, 1\): must be left out, it is no option; the options are .*"),
]


@pytest.mark.parametrize("create", [twins_jax.create_model, twins_jax.create_backbone])
@pytest.mark.parametrize(
    ("arguments", "message"), BAD_ARGUMENTS, ids=lambda value: str(value) if isinstance(value, dict) else ""
)
def test_bad_argument(create: Callable[..., nnx.Module], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        create("twins_svt_tiny", rngs=nnx.Rngs(0), **arguments)


@pytest.mark.parametrize("create", [twins_jax.create_model, twins_jax.create_backbone])
def test_unknown_variant(create: Callable[..., nnx.Module]) -> None:
    with pytest.raises(InputError, match=r"^name='twins_svt_huge': must be one of ") as caught:
        create("twins_svt_huge", rngs=nnx.Rngs(0))
    assert str(caught.value).endswith(", ".join(twins_jax.list_models()))


def test_negative_number_of_classes() -> None:
    with pytest.raises(InputError, match=r"^num_classes=-1: must be an integer from 0$"):
        twins_jax.create_model("twins_svt_tiny", num_classes=-1, rngs=nnx.Rngs(0))


def test_classifier_with_stage_norms() -> None:
    with pytest.raises(InputError, match=r"^stage_norms=True: must be False"):
        twins_jax.create_model("twins_svt_tiny", stage_norms=True, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed_dims": (32, 64, 128)}, r"embed_dims=\(32, 64, 128\): must be four positive integers"),
        ({"depths": (2, 0, 2, 2)}, r"depths=\(2, 0, 2, 2\): must be four positive integers"),
        ({"mlp_ratios": (4, 4, 4, -4)}, r"mlp_ratios=\(4, 4, 4, -4\): must be four positive integers"),
        ({"num_heads": (1, 1, 1, 1, 1)}, r"num_heads=\(1, 1, 1, 1, 1\): must be four positive integers"),
        ({"sub_sampling_ratios": ()}, r"sub_sampling_ratios=\(\): must be four positive integers"),
        (
            {"num_heads": (1, 2, 5, 8)},
            r"num_heads=\(1, 2, 5, 8\): must be divisors of embed_dims, \(32, 64, 128, 256\)",
        ),
        ({"window_size": 1}, r"window_size=1: must be None or an integer from 2"),
    ],
    ids=str,
)
def test_bad_architecture(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        dataclasses.replace(CONFIG, **fields)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 64, 64, 4), "float32", r"images.shape=\(2, 64, 64, 4\): must be \[B, H, W, 3\]"),
        ((2, 3, 64, 64), "float32", r"images.shape=\(2, 3, 64, 64\): must be \[B, H, W, 3\]"),
        ((64, 64, 3), "float32", r"images.shape=\(64, 64, 3\): must be \[B, H, W, 3\]"),
        ((2, 31, 64, 3), "float32", r"images.shape=\(2, 31, 64, 3\): must be of H and W from 32"),
        ((2, 64, 31, 3), "float32", r"images.shape=\(2, 64, 31, 3\): must be of H and W from 32"),
        ((2, 64, 64, 3), "uint8", r"images.dtype='uint8': must be a floating-point dtype, of normalized values"),
    ],
)
def test_bad_images(shape: tuple[int, ...], dtype: str, message: str) -> None:
    images = jnp.zeros(shape, dtype)
    for make in (lambda: TwinsBackbone(CONFIG, rngs=nnx.Rngs(0)), lambda: TwinsClassifier(CONFIG, 5, rngs=nnx.Rngs(0))):
        with pytest.raises(InputError, match=f"^{message}$"):
            nnx.eval_shape(make)(images)


def test_list_models_has_the_names_of_timm() -> None:
    names = [f"twins_{family}_{size}" for family in ("pcpvt", "svt") for size in ("base", "large", "small")]
    assert twins_jax.list_models() == [*names, "twins_svt_tiny"]


def test_list_models_takes_a_wildcard() -> None:
    assert twins_jax.list_models("*_pcpvt_*") == [f"twins_pcpvt_{size}" for size in ("base", "large", "small")]
    assert twins_jax.list_models("swin*") == []


def test_options_are_the_fields_of_the_configuration_that_have_a_default() -> None:
    fields = {field.name for field in dataclasses.fields(TwinsConfig) if field.default is not dataclasses.MISSING}
    assert fields == TwinsOptions.__annotations__.keys()


def test_input_errors_are_value_errors() -> None:
    assert issubclass(InputError, ValueError)
