"""Bad input gives an error that names the argument, what was given and what is allowed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest
from flax import nnx

import twins_jax
from twins_jax import InputError, TwinsBackbone, TwinsClassifier
from twins_jax.config import variant_config

CONFIG = variant_config("twins_svt_tiny")

BAD_ARGUMENTS = [
    ({"in_channels": 0}, r"in_channels=0: allowed are integers from 1"),
    ({"drop_path_rate": 1.0}, r"drop_path_rate=1.0: allowed are rates in \[0, 1\)"),
    ({"drop_path_rate": -0.1}, r"drop_path_rate=-0.1: allowed are rates in \[0, 1\)"),
    ({"drop_path_rate": float("nan")}, r"drop_path_rate=nan: allowed are rates in \[0, 1\)"),
    ({"dropout_rate": 1.5}, r"dropout_rate=1.5: allowed are rates in \[0, 1\)"),
    ({"window_padding": "wrap"}, r"window_padding='wrap': allowed are \('zero', 'mask'\)"),
    ({"attention_implementation": "flash"}, r"attention_implementation='flash': allowed are .*'pallas', 'cudnn'\)"),
    ({"dtype": jnp.int32}, r"dtype=.*int32.*: allowed are floating-point dtypes"),
    ({"param_dtype": "uint8"}, r"param_dtype='uint8': allowed are floating-point dtypes"),
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
    with pytest.raises(InputError, match=r"^name='twins_svt_huge' is not a Twins variant: allowed are ") as caught:
        create("twins_svt_huge", rngs=nnx.Rngs(0))
    assert str(caught.value).endswith(", ".join(twins_jax.list_models()))


def test_negative_number_of_classes() -> None:
    with pytest.raises(InputError, match=r"^num_classes=-1: allowed are integers from 0$"):
        twins_jax.create_model("twins_svt_tiny", num_classes=-1, rngs=nnx.Rngs(0))


def test_classifier_with_stage_norms() -> None:
    with pytest.raises(InputError, match=r"^stage_norms=True: allowed for backbones only"):
        TwinsClassifier(dataclasses.replace(CONFIG, stage_norms=True), 10, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed_dims": (32, 64, 128)}, r"embed_dims=\(32, 64, 128\): allowed are four positive integers"),
        ({"depths": (2, 0, 2, 2)}, r"depths=\(2, 0, 2, 2\): allowed are four positive integers"),
        ({"mlp_ratios": (4, 4, 4, -4)}, r"mlp_ratios=\(4, 4, 4, -4\): allowed are four positive integers"),
        ({"num_heads": (1, 1, 1, 1, 1)}, r"num_heads=\(1, 1, 1, 1, 1\): allowed are four positive integers"),
        ({"sub_sampling_ratios": ()}, r"sub_sampling_ratios=\(\): allowed are four positive integers"),
        ({"num_heads": (1, 2, 5, 8)}, r"num_heads=\(1, 2, 5, 8\): 5 heads do not divide embed_dims' 128"),
        ({"window_size": 1}, r"window_size=1: allowed are None and integers from 2"),
    ],
    ids=str,
)
def test_bad_architecture(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        dataclasses.replace(CONFIG, **fields)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 64, 64, 4), "float32", r"images have shape \(2, 64, 64, 4\): allowed are \[B, H, W, 3\]"),
        ((2, 3, 64, 64), "float32", r"images have shape \(2, 3, 64, 64\): allowed are \[B, H, W, 3\]"),
        ((64, 64, 3), "float32", r"images have shape \(64, 64, 3\): allowed are \[B, H, W, 3\]"),
        ((2, 31, 64, 3), "float32", r"images have shape \(2, 31, 64, 3\): H and W must be at least 32"),
        ((2, 64, 31, 3), "float32", r"images have shape \(2, 64, 31, 3\): H and W must be at least 32"),
        ((2, 64, 64, 3), "uint8", r"images have dtype uint8: allowed are normalised floating-point values"),
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


def test_input_errors_are_value_errors() -> None:
    assert issubclass(InputError, ValueError)
