"""Images of other kinds than JAX's arrays, and empty batches."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import twins_jax
from tests.support.compilation import fast_compilation
from tests.support.models import PCPVT, SVT, classifier, random_array, random_module
from train.recipes import digits
from train.task import DatasetInfo
from train.tasks.classification.metrics import ClassificationEvaluator
from train.tasks.classification.task import ClassificationTask
from twins_jax import InputError, TwinsClassifier
from twins_jax.backbone import Stage
from twins_jax.config import VARIANTS
from twins_jax.inputs import as_array
from twins_jax.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalize

SMALL = random_array(2, 32, 32, 3)
KINDS: dict[str, Callable[[np.ndarray], Any]] = {
    "NumPy": lambda images: images,
    "float64": lambda images: images.astype(np.float64),
    "list": lambda images: images.tolist(),
    "list of arrays": lambda images: list(images),
    "list of JAX's": lambda images: [jnp.asarray(image) for image in images],
}


def torch_tensor(images: np.ndarray) -> Any:
    return pytest.importorskip("torch").from_numpy(images.copy())


KINDS["big-endian"] = lambda images: images.astype(">f4")
KINDS["list of big-endian"] = lambda images: list(images.astype(">f4"))
KINDS["long double"] = lambda images: images.astype(np.longdouble)
KINDS["nothing masked"] = lambda images: np.ma.array(images, mask=False)
KINDS["torch"] = torch_tensor
KINDS["torch, with gradient"] = lambda images: torch_tensor(images).requires_grad_()
KINDS["torch, computed"] = lambda images: torch_tensor(images).requires_grad_() * 1
KINDS["list of torch, with gradient"] = lambda images: list(torch_tensor(images).requires_grad_())
KINDS["torch, postponed sign"] = lambda images: pytest.importorskip("torch")._neg_view(torch_tensor(-images))
KINDS["torch, imaginary part of a conjugate"] = lambda images: (torch_tensor(-1j * images)).conj().imag
KINDS["torch, other strides"] = lambda images: torch_tensor(images.transpose(0, 3, 1, 2)).permute(0, 2, 3, 1)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_array_likes_become_arrays(kind: Callable[[np.ndarray], Any]) -> None:
    found = as_array("images", kind(SMALL))
    assert isinstance(found, jax.Array)
    np.testing.assert_array_equal(found, SMALL)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_bfloat16_of_torch_becomes_an_array(requires_grad: bool) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(SMALL.copy()).bfloat16()
    np.testing.assert_array_equal(as_array("images", [tensor.requires_grad_(requires_grad)])[0], as_array("", tensor))
    tensor = tensor.detach().requires_grad_(requires_grad)
    found = as_array("images", tensor)
    assert found.dtype == jnp.bfloat16
    expected = np.asarray(found, np.float32)
    tensor.detach().zero_()
    np.testing.assert_array_equal(np.asarray(found, np.float32), expected)  # a copy
    np.testing.assert_allclose(expected, SMALL, rtol=1 / 256)


@pytest.mark.parametrize(
    "value", [None, "cat.jpg", b"cat", {"image": SMALL}, object(), [SMALL, SMALL[:1]]], ids=lambda v: type(v).__name__
)
def test_what_is_no_array(value: Any) -> None:
    model = nnx.eval_shape(lambda: twins_jax.TwinsBackbone(PCPVT, rngs=nnx.Rngs(0)))
    for call in (model, normalize):
        with pytest.raises(InputError, match=rf"^images: a {type(value).__name__} that is no array of numbers: .+$"):
            call(value)


MASKED = np.ma.array(SMALL, mask=SMALL > 0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (SMALL.astype(object), r"images.dtype='object': must be a dtype of numbers"),
        ([SMALL.astype(object)], r"images.dtype='object': must be a dtype of numbers"),
        (SMALL.astype("U"), r"images.dtype='<U.*': must be a dtype of numbers"),
        (SMALL.astype("M8[s]"), r"images.dtype='datetime64\[s\]': must be a dtype of numbers"),
        (MASKED, r"images: has masked values: must be filled first, such as by images.filled\(0\)"),
        (list(MASKED), r"images: has masked values: must be filled first, .*"),
        (np.full(SMALL.shape, 2**40 + 9), r"images='0 to 1099511627785': must be integers that int32 holds"),
    ],
    ids=["object", "list of object", "text", "dates", "masked", "list of masked", "integers"],
)
def test_what_jax_would_change_or_refuse_by_another_name(value: Any, message: str) -> None:
    for call in (nnx.eval_shape(lambda: twins_jax.TwinsBackbone(PCPVT, rngs=nnx.Rngs(0))), normalize):
        with pytest.raises(InputError, match=f"^{message}$"):
            call(value)


def test_every_entrance_converts() -> None:
    """The classifier, the backbone and the functions of `split_model`, jitted too."""
    model = classifier(dataclasses.replace(PCPVT, embed_dims=(8, 8, 8, 8), num_heads=(1, 1, 1, 1)))
    apply, params = twins_jax.split_model(model)
    images = list(SMALL)
    for call in (model, model.backbone, lambda images: apply(params, images), lambda x: jax.jit(apply)(params, x)):
        # Shapes are enough: the model computes the same of an array, once it has one.
        assert jax.tree.leaves(jax.eval_shape(lambda: call(images)))[0].shape[0] == 2  # noqa: B023


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((3, 40, 40), "uint8", r"images.shape=\(3, 40, 40\): must be \[..., H, W, 3\], channels last: jnp.moveaxis.*"),
        ((2, 40, 40, 4), "uint8", r"images.shape=\(2, 40, 40, 4\): must be \[..., H, W, 3\]"),
        ((40, 3), "uint8", r"images.shape=\(40, 3\): must be \[..., H, W, 3\]"),
        ((2, 40, 40, 3), "float32", r"images.dtype='float32': must be uint8, of values from 0 to 255"),
        ((2, 40, 40, 3), "bool", r"images.dtype='bool': must be uint8, of values from 0 to 255"),
    ],
)
def test_normalize_refuses(shape: tuple[int, ...], dtype: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        normalize(np.zeros(shape, dtype))


def test_normalize_takes_known_integers() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3))
    expected = (images / 255 - IMAGENET_MEAN) / IMAGENET_STD
    for given in (images, images.tolist(), images.astype(np.uint16), jnp.asarray(images)):
        np.testing.assert_allclose(normalize(given), expected, rtol=0, atol=1e-5)
    assert normalize(np.zeros((0, 4, 5, 3), np.uint8)).shape == (0, 4, 5, 3)
    with pytest.raises(InputError, match=r"^images='0 to 65535': must be from 0 to 255$"):
        normalize(np.array([[[[0, 9, 65535]]]], np.uint16))
    with pytest.raises(InputError, match=r"^images='-1 to 0': must be from 0 to 255$"):
        normalize([[[[0, -1, 0]]]])


NO_IMAGES = np.zeros((0, 45, 70, 3), np.float32)


def loss(apply: Callable[..., jax.Array], params: Any, images: Any) -> tuple[jax.Array, jax.Array]:
    outputs = apply(params, images, jax.random.key(0))
    return (outputs**2).sum(), outputs


def test_the_gradients_of_an_empty_batch() -> None:
    config = dataclasses.replace(SVT, dropout_rate=0.1, window_padding="mask")
    # The first stage has every kind of layer.
    stage = random_module(lambda: Stage(0, drop_path_rates=[0.0, 0.2], config=config, rngs=nnx.Rngs(0)))
    apply, params = twins_jax.split_model(stage)
    with fast_compilation():
        run = jax.jit(jax.value_and_grad(loss, argnums=(1, 2), has_aux=True), static_argnums=0)
        (value, outputs), (gradients, to_images) = run(apply, params, NO_IMAGES)
    assert value == 0
    assert outputs.shape == (0, 11, 17, 16)
    assert to_images.shape == NO_IMAGES.shape
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients))


SVTS = ("twins_svt_small", "twins_svt_base", "twins_svt_large")
VARIANTS_AND_OPTIONS = [
    *((name, "xla", "zero") for name in twins_jax.list_models("*[!y]")),
    *((name, "xla", "mask") for name in SVTS),
    ("twins_pcpvt_small", "pallas", "zero"),
    ("twins_svt_small", "pallas", "mask"),
]


@pytest.mark.parametrize(("name", "implementation", "padding"), VARIANTS_AND_OPTIONS)
def test_an_empty_batch_of_every_variant(name: str, implementation: Any, padding: Any) -> None:
    # A kind of block once: more of them have the same shapes.
    config = dataclasses.replace(VARIANTS[name], depths=(2, 1, 1, 1), attention_implementation=implementation)
    config = dataclasses.replace(config, window_padding=padding)
    model = nnx.eval_shape(lambda: TwinsClassifier(config, 7, rngs=nnx.Rngs(0)))
    graphdef, (apply, params) = nnx.graphdef(model), twins_jax.split_model(model)
    maps = jax.eval_shape(lambda params: twins_jax.merge_model(graphdef, params).backbone(NO_IMAGES), params)
    assert [m.shape[:3] for m in maps] == [(0, 11, 17), (0, 5, 8), (0, 2, 4), (0, 1, 2)]
    differentiate = functools.partial(jax.value_and_grad(loss, argnums=1, has_aux=True), apply)
    (_, logits), gradients = jax.eval_shape(differentiate, params, NO_IMAGES)
    assert logits.shape == (0, 7)
    assert jax.tree.structure(gradients) == jax.tree.structure(params)


def test_metrics_of_an_empty_batch() -> None:
    batch = {"image": np.zeros((0, 32, 32, 3), np.uint8), "label": np.zeros(0, np.int32), "mask": np.zeros(0, bool)}
    evaluator = ClassificationEvaluator()
    assert evaluator.result() == {"top1": 0.0, "top5": 0.0, "loss": 0.0, "examples": 0}
    evaluator.update(jax.jit(lambda batch: evaluator.step(lambda images: images.mean((1, 2)), batch))(batch), batch)
    assert evaluator.result() == {"top1": 0.0, "top5": 0.0, "loss": 0.0, "examples": 0}


def test_training_loss_of_an_empty_batch() -> None:
    task = ClassificationTask(digits(), DatasetInfo(3, tuple("abc"), 4, 4))
    batch = {"image": np.zeros((0, 32, 32, 3), np.uint8), "label": np.zeros(0, np.int32)}

    def of_scale(scale: jax.Array) -> jax.Array:
        augmented = task.augment(batch, jax.random.split(jax.random.key(0)))
        return task.loss(lambda images, **_: scale * images.mean((1, 2)), augmented, nnx.Rngs(0))[0]

    assert jax.value_and_grad(of_scale)(jnp.ones(())) == (0.0, 0.0)
