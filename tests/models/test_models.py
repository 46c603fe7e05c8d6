"""The models' arguments: shapes and dtypes of outputs, classes, channels, norms, rematerialization."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import twins_jax
from tests.support.models import (
    IMAGES,
    PCPVT,
    SVT,
    classifier,
    named,
    random_module,
    relative_error,
    run,
)
from twins_jax import TwinsBackbone, TwinsConfig
from twins_jax.backbone import Stage
from twins_jax.config import variant_config

IN_FLOAT64 = {"dtype": np.float64, "param_dtype": np.float64}


def output_shapes(model: nnx.Module, *image_shape: int) -> Any:
    apply, params = twins_jax.split_model(model)
    return jax.eval_shape(apply, params, jax.ShapeDtypeStruct(image_shape, jnp.float32))


@pytest.mark.parametrize("size", [(224, 224), (230, 311), (32, 32), (63, 800)], ids=str)
@pytest.mark.parametrize("config", [PCPVT, SVT, dataclasses.replace(SVT, stage_norms=True)])
def test_maps_have_the_strides_of_the_paper(config: TwinsConfig, size: tuple[int, int]) -> None:
    maps = output_shapes(nnx.eval_shape(lambda: TwinsBackbone(config, rngs=nnx.Rngs(0))), 2, *size, 3)
    assert [m.shape for m in maps] == [
        (2, size[0] // stride, size[1] // stride, dim)
        for stride, dim in zip((4, 8, 16, 32), config.embed_dims, strict=True)
    ]


@pytest.mark.parametrize("create", [twins_jax.create_model, twins_jax.create_backbone])
def test_arguments_reach_the_configuration(create: Callable[..., Any]) -> None:
    uses = {
        "in_channels": 4,
        "drop_path_rate": 0.3,
        "dropout_rate": 0.1,
        "window_padding": "mask",
        "attention_implementation": "xla",
        "dtype": jnp.bfloat16,
        "param_dtype": jnp.float16,
        "remat": True,
    }
    if create is twins_jax.create_backbone:
        uses["stage_norms"] = True
    model = nnx.eval_shape(lambda: create("twins_svt_tiny", rngs=nnx.Rngs(0), **uses))
    assert model.config == dataclasses.replace(variant_config("twins_svt_tiny"), **uses)


def test_a_dtype_by_its_name() -> None:
    by_name, by_type = (
        run(classifier(dataclasses.replace(SVT, dtype=dtype)), IMAGES) for dtype in ("bfloat16", jnp.bfloat16)
    )
    np.testing.assert_array_equal(by_name, by_type)


def test_bfloat16_computes_in_bfloat16_on_float32_parameters(logits: jax.Array) -> None:
    model = classifier(dataclasses.replace(SVT, dtype=jnp.bfloat16))
    actual = run(model, IMAGES)
    maps = output_shapes(model.backbone, *IMAGES.shape)
    assert actual.dtype == jnp.bfloat16
    assert {m.dtype for m in maps} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in named(twins_jax.get_params(model)).values()} == {np.dtype(np.float32)}
    # bfloat16 rounds by 2^-9 = 0.2 % at each of a few dozen operations in a row.
    assert 1e-4 < relative_error(actual, logits) < 0.05


def test_remat_changes_nothing_but_memory() -> None:
    def gradients(remat: bool) -> tuple[str, dict[str, np.ndarray]]:
        config = dataclasses.replace(SVT, remat=remat, **IN_FLOAT64)
        stage = random_module(lambda: Stage(0, drop_path_rates=[0.0, 0.2], config=config, rngs=nnx.Rngs(0)))
        graphdef, params = nnx.split(stage)

        def loss(params: nnx.State) -> jax.Array:
            rngs = nnx.Rngs(dropout=jax.random.key(0))
            return (nnx.merge(graphdef, params)(jnp.asarray(IMAGES, jnp.float64), rngs) ** 2).sum()

        traced = jax.jit(jax.grad(loss)).trace(params)
        return str(traced.jaxpr), named(nnx.to_pure_dict(traced.lower().compile()(params)))

    with jax.enable_x64(True):
        plain_program, expected = gradients(remat=False)
        program, actual = gradients(remat=True)
    assert "remat" in program
    assert "remat" not in plain_program
    for path, gradient in actual.items():
        # The same operations in float64, the forward ones twice: the second time, they must drop the same again.
        assert relative_error(gradient, expected[path]) < 1e-12, path
