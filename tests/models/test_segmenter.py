"""Segmenters: shapes, gradients, BatchNorm's statistics, dropout, dtypes, initial values and errors."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import twins_jax
from tests.support.bad_arguments import bad_arguments
from tests.support.models import NANO, PCPVT, SVT, named, random_array, random_module, relative_error
from twins_jax import InputError, TwinsSegmenter
from twins_jax.segmentation.fcn import DROPOUT_RATE, FCNHead, PixelClassifier
from twins_jax.segmentation.segmenter import HEADS, SegmentationHead, TrainingLogits, segmenter_config
from twins_jax.segmentation.semantic_fpn import SemanticFPNHead

CLASSES = 7
DENSE = dataclasses.replace(SVT, stage_norms=True, window_padding="mask")
CONFIGS = {"upernet": DENSE, "semantic_fpn": PCPVT}

PARAMETERS = {
    "upernet": (54.59, 74.32, 91.48, 54.37, 88.49, 133.81),
    "semantic_fpn": (28.37, 48.10, 65.26, 28.31, 60.45, 103.77),
}
"""Millions in upstream's models of 150 classes, PCPVT-S/B/L and SVT-S/B/L, with the unused norm and head of 1000."""


@functools.cache
def segmenter(head: SegmentationHead, **options: Any) -> TwinsSegmenter:
    """With a head of few channels, whose computation is the same."""

    def make() -> TwinsSegmenter:
        config = dataclasses.replace(CONFIGS[head], **options)
        dims, common = config.embed_dims, {"dtypes": config.dtypes, "rngs": nnx.Rngs(0)}
        model = TwinsSegmenter(config, head, CLASSES, rngs=nnx.Rngs(0))
        model.decode_head = HEADS[head](dims, CLASSES, 16, **common)
        if head == "upernet":
            model.auxiliary_head = FCNHead(dims[2], CLASSES, 16, **common)
        return model

    return random_module(make)


def split(head: SegmentationHead, **options: Any) -> tuple[Callable[..., Any], Any, Any]:
    parts: tuple[Any, Any, Any] = twins_jax.split_model(segmenter(head, **options), TwinsSegmenter.training_logits)
    return parts


IMAGES = random_array(2, 64, 70, 3)
"""The last stage has 2x2 positions."""


class Step(NamedTuple):
    """A step of training."""

    gradients: dict[str, np.ndarray]
    logits: TrainingLogits
    batch_stats: Any


@functools.cache
def trainer(head: SegmentationHead) -> Callable[[int], Step]:
    """A function of a seed; its program is compiled once for all tests."""
    apply, params, batch_stats = split(head)

    def loss(params: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        logits, updated = apply(params, batch_stats, IMAGES, key)
        leaves = jax.tree.leaves(logits)
        total = sum((output * random_array(*output.shape, seed=i)).sum() for i, output in enumerate(leaves))
        return total, (logits, updated)

    step = jax.jit(jax.grad(loss, has_aux=True))

    def train(seed: int) -> Step:
        gradients, (logits, updated) = step(params, jax.random.key(seed))
        return Step(named(gradients), logits, updated)

    return train


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (101, 64)])
def test_shapes_at_any_size(head: SegmentationHead, height: int, width: int) -> None:
    images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    model = segmenter(head)

    def run(images: jax.Array) -> tuple[Any, ...]:
        return model(images), model.logits4(images), model.training_logits(images)

    logits, logits4, training = jax.eval_shape(run, images)
    assert logits.shape == (2, height, width, CLASSES)
    assert logits4.shape == training.decode.shape == (2, height // 4, width // 4, CLASSES)
    if head == "upernet":
        assert training.auxiliary.shape == (2, height // 16, width // 16, CLASSES)
    else:
        assert training.auxiliary is None


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_gets_a_gradient(head: SegmentationHead) -> None:
    gradients = trainer(head)(0).gradients
    assert ("auxiliary_head/conv/conv/kernel" in gradients) == (head == "upernet")
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for path, gradient in gradients.items():
        assert np.isfinite(gradient).all(), path
        # float32's noise, where the gradient is zero, is 1e-8 to 1e-7 of the largest.
        assert np.abs(gradient).max() > 1e-5 * largest, path


@pytest.mark.parametrize("head", HEADS)
def test_statistics_move_in_training_only(head: SegmentationHead) -> None:
    model = segmenter(head)
    graphdef, params, batch_stats = nnx.graphdef(model), twins_jax.get_params(model), twins_jax.get_batch_stats(model)

    @jax.jit
    def evaluate(batch_stats: Any) -> tuple[Any, Any]:
        model = twins_jax.merge_model(graphdef, params, batch_stats)
        return model.training_logits(IMAGES), twins_jax.get_batch_stats(model)

    logits, kept = evaluate(batch_stats)
    before = named(batch_stats)
    for path, statistic in named(kept).items():
        np.testing.assert_array_equal(statistic, before[path])
    updated = trainer(head)(0).batch_stats
    assert named(updated).keys() == before.keys()
    for path, statistic in named(updated).items():
        assert (statistic != before[path]).any(), path
        assert np.isfinite(statistic).all(), path
    assert (evaluate(updated)[0].decode != logits.decode).any()


@pytest.mark.parametrize("head", HEADS)
def test_dropout_acts_with_a_key_only(head: SegmentationHead) -> None:
    one, again, other = (trainer(head)(seed).logits for seed in (1, 1, 2))
    for draws in zip(*(jax.tree.leaves(logits) for logits in (one, again, other)), strict=True):
        np.testing.assert_array_equal(draws[0], draws[1])
        assert (draws[0] != draws[2]).any()


def test_dropout_drops_whole_channels() -> None:
    classifier = PixelClassifier(1000, 1000, dtypes=DENSE.dtypes, rngs=nnx.Rngs(0))
    classifier.conv.kernel[...] = jnp.eye(1000)[None, None]
    kept = np.asarray(classifier(jnp.ones((2, 3, 4, 1000)), nnx.Rngs(dropout=0)))
    np.testing.assert_allclose(np.unique(kept), [0, 1 / (1 - DROPOUT_RATE)], rtol=1e-6)
    assert (kept == kept[:, :1, :1]).all()  # at every position
    assert (kept[0] != kept[1]).any()  # by image
    assert abs((kept[:, 0, 0] == 0).mean() - DROPOUT_RATE) < 5 * math.sqrt(DROPOUT_RATE * (1 - DROPOUT_RATE) / 2000)


@pytest.mark.parametrize("head", HEADS)
def test_bfloat16(head: SegmentationHead) -> None:
    apply, params, batch_stats = split(head, dtype=jnp.dtype("bfloat16"))
    logits, updated = jax.jit(apply)(params, batch_stats, IMAGES, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(logits)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    _, expected, statistics = trainer(head)(0)
    for output, truth in zip(jax.tree.leaves(logits), jax.tree.leaves(expected), strict=True):
        assert relative_error(output, truth) < 0.1
    for path, statistic in named(updated).items():
        assert relative_error(statistic, named(statistics)[path]) < 0.05, path


def count(make: Callable[[], nnx.Module]) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(nnx.eval_shape(make), nnx.Param)))


@pytest.mark.parametrize("index", range(6))
def test_numbers_of_parameters_are_upstreams(index: int) -> None:
    name = [f"twins_{family}_{size}" for family in ("pcpvt", "svt") for size in ("small", "base", "large")][index]
    config = segmenter_config(name)
    dims, dtypes = config.embed_dims, config.dtypes
    unused = 2 * dims[-1] + 1000 * (dims[-1] + 1)
    upernet = count(lambda: twins_jax.create_segmenter(name, rngs=nnx.Rngs(0)))
    assert round((upernet + unused) / 1e6, 2) == PARAMETERS["upernet"][index]
    # The backbone is counted once: tracing it takes the time.
    decode, auxiliary, semantic_fpn = (
        count(functools.partial(lambda head, dims: head(dims, 150, dtypes=dtypes, rngs=nnx.Rngs(0)), *head))
        for head in ((HEADS["upernet"], dims), (FCNHead, dims[2]), (SemanticFPNHead, dims))
    )
    assert round((upernet - decode - auxiliary + semantic_fpn + unused) / 1e6, 2) == PARAMETERS["semantic_fpn"][index]


def test_initial_values() -> None:
    """Kaiming's of fan-out in convolutions, those of the neck included, and N(0, 0.01) in classifiers."""
    dims = (24, 24, 24, 24)
    modules: dict[str, nnx.Module] = {
        "upernet": HEADS["upernet"](dims, 40, 24, dtypes=SVT.dtypes, rngs=nnx.Rngs(0)),
        "semantic_fpn": SemanticFPNHead(dims, 40, 24, dtypes=SVT.dtypes, rngs=nnx.Rngs(1)),
        "auxiliary": FCNHead(24, 40, 24, dtypes=SVT.dtypes, rngs=nnx.Rngs(2)),
    }
    for module in modules.values():
        for path, values in named(twins_jax.get_params(module)).items():
            if not path.endswith("kernel"):
                np.testing.assert_array_equal(values, np.full_like(values, path.endswith("scale")), path)
                continue
            side, _, _, out = values.shape
            z = values / (0.01 if "classifier" in path else math.sqrt(2 / (side * side * out)))
            # Five standard errors of a mean and of a standard deviation, over about 40 kernels.
            assert abs(z.mean()) < 5 / math.sqrt(z.size), path
            assert abs(z.std() - 1) < 5 / math.sqrt(2 * z.size), path
        for path, values in named(twins_jax.get_batch_stats(module)).items():
            np.testing.assert_array_equal(values, np.full_like(values, path.endswith("var")), path)


def test_configuration_of_upstreams_segmentation() -> None:
    assert segmenter_config("twins_svt_small").stage_norms
    assert not segmenter_config("twins_pcpvt_small").stage_norms
    assert segmenter_config("twins_svt_small").window_padding == "mask"
    given = segmenter_config("twins_svt_tiny", stage_norms=False, window_padding="zero", drop_path_rate=0.2)
    assert (given.stage_norms, given.window_padding, given.drop_path_rate) == (False, "zero", 0.2)


@pytest.mark.parametrize(("arguments", "message"), bad_arguments("upernet", "semantic_fpn"), ids=str)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        twins_jax.create_segmenter("twins_svt_tiny", **({"rngs": nnx.Rngs(0)} | arguments))


def test_bad_names_and_configurations() -> None:
    for name in ("twins_svt_huge", None, 3, ""):
        with pytest.raises(InputError, match=rf"^name={re.escape(repr(name))}: must be one of "):
            twins_jax.create_segmenter(name, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=r"^config='twins_svt_small': must be "):
        TwinsSegmenter("twins_svt_small", "upernet", 5, rngs=nnx.Rngs(0))  # type: ignore[arg-type]


def test_bad_images_and_names_of_classes() -> None:
    model = nnx.eval_shape(lambda: TwinsSegmenter(NANO, "semantic_fpn", 3, rngs=nnx.Rngs(0)))
    for call in (model, model.logits4, model.training_logits):
        with pytest.raises(InputError, match=r"^images.shape=\(1, 31, 64, 3\): must be of H and W from 32$"):
            call(jnp.zeros((1, 31, 64, 3)))
        with pytest.raises(InputError, match=r"^images.dtype='uint8': must be a floating-point dtype, "):
            call(jnp.zeros((1, 64, 64, 3), "uint8"))
        with pytest.raises(InputError, match=r"^rngs=0: must be nnx.Rngs with the stream 'dropout'"):
            call(jnp.zeros((1, 64, 64, 3)), rngs=0)
    model.class_names = ["land", "water", "road"]
    assert model.class_names == ("land", "water", "road")
    for names in (["land"], "abc", [1, 2, 3], {"a": 1}):
        with pytest.raises(
            InputError, match=r"^class_names=.+: must be None or 3 strings, one for each of num_classes$"
        ):
            model.class_names = names
    with pytest.raises(InputError, match=r"^preprocessing=.+: must be None or a twins_jax.SegmentationPreprocessing$"):
        model.preprocessing = twins_jax.Preprocessing()
