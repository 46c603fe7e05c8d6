"""The choice between implementations of attention, on platforms that this machine lacks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.support.models import SVT, classifier
from twins_jax import InputError
from twins_jax.ops import dispatch
from twins_jax.ops.dispatch import choose


def test_auto_is_the_plain_formulation_on_cpus() -> None:
    assert choose("auto", jnp.float32, 32) == "xla"


def on_gpu(monkeypatch: pytest.MonkeyPatch, auto: str) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(dispatch, "AUTO_ON_GPU", auto)


@pytest.mark.parametrize(
    ("auto", "arguments", "uses", "expected"),
    [
        ("pallas", ("bfloat16", 32), {"window_size": 7, "masks_padding": True}, "pallas"),
        ("pallas", ("float64", 32), {}, "xla"),
        ("pallas", ("float32", 24), {}, "xla"),
        ("pallas", ("float32", 128), {}, "xla"),
        ("pallas", ("float32", 32), {"window_size": 9}, "xla"),
        ("cudnn", ("bfloat16", 24), {}, "cudnn"),
        ("cudnn", ("float32", 32), {}, "xla"),
        ("cudnn", ("bfloat16", 12), {}, "xla"),
        ("cudnn", ("bfloat16", 32), {"window_size": 7, "masks_padding": True}, "xla"),
    ],
)
def test_auto_falls_back(
    monkeypatch: pytest.MonkeyPatch, auto: str, arguments: tuple[str, int], uses: dict[str, Any], expected: str
) -> None:
    on_gpu(monkeypatch, auto)
    assert choose("auto", *arguments, **uses) == expected


@pytest.mark.parametrize(
    ("platform", "requested", "arguments", "uses", "message"),
    [
        ("cpu", "cudnn", ("bfloat16", 32), {}, "used on CUDA GPUs: found the platform cpu"),
        ("tpu", "pallas", ("bfloat16", 32), {}, "used on GPUs, or interpreted for tests: found the platform tpu"),
        ("gpu", "pallas", ("float64", 32), {}, "given float32, bfloat16 or float16: found dtype=float64"),
        ("gpu", "pallas", ("float32", 24), {}, "given heads of 16, 32, 64 channels: found 24"),
        ("gpu", "pallas", ("float32", 32), {"window_size": 9}, "given windows of up to 8: found window_size=9"),
        ("gpu", "cudnn", ("float32", 32), {}, "given bfloat16 or float16: found dtype=float32"),
        ("gpu", "cudnn", ("float16", 12), {}, "given heads of a multiple of 8 channels, up to 128: found 12"),
        (
            "gpu",
            "cudnn",
            ("float16", 32),
            {"masks_padding": True},
            "given window_padding='zero' where",
        ),
    ],
)
def test_what_does_not_apply_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
    requested: Any,
    arguments: tuple[str, int],
    uses: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    with pytest.raises(InputError, match=f"^attention_implementation='{requested}': must be {message}"):
        choose(requested, *arguments, **uses)


def test_the_error_comes_with_the_call() -> None:
    model = classifier(dataclasses.replace(SVT, attention_implementation="cudnn"))
    with pytest.raises(InputError, match=r"^attention_implementation='cudnn': must be used on CUDA GPUs"):
        nnx.eval_shape(model, jnp.zeros((1, 32, 32, 3)))
