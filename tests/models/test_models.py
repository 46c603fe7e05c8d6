"""What the models' arguments do: shapes and dtypes of outputs, classes, channels, norms, rematerialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import twins_jax
from tests.models.helpers import float64_mode, named, random_array, relative_error, run, tiny, tiny_backbone
from twins_jax.config import VARIANTS

IMAGES = random_array(2, 70, 100, 3)


@pytest.fixture(scope="module")
def logits() -> jax.Array:
    return run(tiny(), IMAGES)


@pytest.mark.parametrize("name", VARIANTS)
def test_maps_have_the_strides_of_the_paper(name: str) -> None:
    backbone = nnx.eval_shape(lambda: twins_jax.create_backbone(name, stage_norms=True, rngs=nnx.Rngs(0)))
    apply, params = twins_jax.split_model(backbone)
    for height, width in [(224, 224), (230, 311), (32, 32), (63, 800)]:
        maps = jax.eval_shape(apply, params, jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32))
        assert [m.shape for m in maps] == [
            (2, height // stride, width // stride, dim)
            for stride, dim in zip((4, 8, 16, 32), VARIANTS[name].embed_dims, strict=True)
        ]


def test_smallest_image() -> None:
    assert np.isfinite(run(tiny(), random_array(1, 32, 32, 3))).all()


def test_stage_norms_normalise_each_map() -> None:
    with float64_mode():
        images = IMAGES.astype(np.float64)
        uses = {"dtype": np.float64, "param_dtype": np.float64}
        backbone = tiny_backbone(stage_norms=True, **uses)
        for plain, normed, norm in zip(
            run(tiny_backbone(**uses), images), run(backbone, images), backbone.norms, strict=True
        ):
            centred = plain - plain.mean(-1, keepdims=True)
            variance = (centred**2).mean(-1, keepdims=True)
            expected = centred / np.sqrt(variance + 1e-6) * norm.scale[...] + norm.bias[...]
            # float64 rounds to about 1e-15; an epsilon of 1e-5 would be off by 1e-6.
            assert relative_error(normed, expected) < 1e-12


def test_classifier_is_norm_mean_and_head_of_the_last_map(logits: jax.Array) -> None:
    model = tiny()
    features = run(tiny(num_classes=0), IMAGES)
    assert features.shape == (2, 256)
    # float32 sums of 256 products.
    assert relative_error(features @ model.head.kernel[...] + model.head.bias[...], logits) < 1e-5

    last = run(tiny_backbone(), IMAGES)[-1]
    assert relative_error(model.norm(last).mean((1, 2)), features) < 1e-5


def test_without_classes_there_is_no_head() -> None:
    assert not any(path.startswith("head") for path in named(twins_jax.get_params(tiny(num_classes=0))))


@pytest.mark.parametrize("in_channels", [1, 4])
def test_other_channels(in_channels: int) -> None:
    model = tiny(in_channels=in_channels)
    assert model.backbone.stages[0].patch_embed.proj.kernel.shape == (4, 4, in_channels, 32)
    images = random_array(2, 32, 32, in_channels)
    logits = run(model, images)
    for channel in range(in_channels):  # each of them matters
        other = images.copy()
        other[..., channel] *= -1
        assert relative_error(run(model, other), logits) > 0.01


def test_bfloat16_computes_in_bfloat16_on_float32_parameters(logits: jax.Array) -> None:
    with jax.numpy_dtype_promotion("standard"):  # NNX's LayerNorm promotes bfloat16 with float32
        model = tiny(dtype=jnp.bfloat16)
        actual = run(model, IMAGES)
        assert all(m.dtype == jnp.bfloat16 for m in run(model.backbone, IMAGES))
    assert actual.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in named(twins_jax.get_params(model)).values()} == {np.dtype(np.float32)}
    # bfloat16 rounds to 2^-9 = 0.2 % at each of the few dozen operations in a row.
    assert relative_error(actual, logits) < 0.05


@pytest.mark.parametrize("key", [None, jax.random.key(0)], ids=["deterministic", "with drop-path and dropout"])
def test_remat_changes_nothing_but_memory(key: jax.Array | None) -> None:
    def loss_and_gradients(remat: bool) -> tuple[str, jax.Array, dict[str, np.ndarray]]:
        model = tiny(remat=remat, drop_path_rate=0.5, dropout_rate=0.2, dtype=np.float64, param_dtype=np.float64)
        apply, params = twins_jax.split_model(model)
        images = IMAGES[:, :40, :40].astype(np.float64)
        loss = jax.value_and_grad(lambda params: apply(params, images, key).sum())
        value, gradients = jax.jit(loss)(params)
        return str(jax.make_jaxpr(loss)(params)), value, named(gradients)

    with float64_mode():
        plain_program, plain_loss, plain_gradients = loss_and_gradients(remat=False)
        program, loss, gradients = loss_and_gradients(remat=True)
    assert "checkpoint" in program
    assert "checkpoint" not in plain_program
    # The same operations in float64, compiled in another order.
    assert loss == pytest.approx(plain_loss, rel=1e-12)
    for path, gradient in gradients.items():
        assert relative_error(gradient, plain_gradients[path]) < 1e-12, path
