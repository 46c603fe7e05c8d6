"""Detectors: shapes, gradients, whole answers, dtypes, initial values, layouts and errors."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util
from jax.sharding import AbstractMesh, AxisType

import twins_jax
from tests.support.bad_arguments import bad_arguments
from tests.support.models import NANO, PCPVT, SVT, named, random_array, random_module
from twins_jax import InputError, TwinsDetector, TwinsRetinaNet
from twins_jax.abstract import abstract_model
from twins_jax.detection import detector as detector_module
from twins_jax.detection import mask_rcnn, retinanet
from twins_jax.detection.build import DETECTORS, make_detector
from twins_jax.detection.detector import DetectionHead, Detections, detector_config
from twins_jax.detection.retinanet import RetinaHead
from twins_jax.detection.roi_heads import BoxHead, MaskHead
from twins_jax.detection.rpn import RegionProposalNetwork
from twins_jax.fpn import FeaturePyramid
from twins_jax.sharding import AXES, shardings

CLASSES = 5
WIDTH = 16
"""Channels of pyramids and heads."""

CONFIGS = {"retinanet": dataclasses.replace(SVT, stage_norms=True), "mask_rcnn": PCPVT}
VARIANTS = [f"twins_{family}_{size}" for family in ("pcpvt", "svt") for size in ("small", "base", "large")]

PARAMETERS = {
    "retinanet": (34.36, 54.08, 71.24, 34.30, 67.01, 110.92),
    "mask_rcnn": (44.27, 64.00, 81.16, 44.21, 76.35, 119.67),
}
"""Millions in upstream's models of 80 classes, of `VARIANTS`, with the unused norm and head of 1,000."""

IMAGES = random_array(2, 64, 96, 3)
SIZES = np.array([[64, 96], [40, 60]], np.int32)
BOXES = np.array([[4, 4, 30, 30], [10, 0, 90, 60], [50.5, 20.25, 60, 64], [0, 0, 96, 64]], np.float32)


@functools.cache
def detector(head: DetectionHead, **options: Any) -> Any:
    """With a pyramid and heads of few channels, whose computation is the same."""

    def make() -> TwinsDetector:
        config = dataclasses.replace(CONFIGS[head], **options)
        model = make_detector(config, head, CLASSES, rngs=nnx.Rngs(0))
        common: dict[str, Any] = {"dtypes": config.dtypes, "rngs": nnx.Rngs(0)}
        neck: dict[str, Any] = common | {"kernel_init": nnx.initializers.zeros}
        if isinstance(model, TwinsRetinaNet):
            model.neck = FeaturePyramid(config.embed_dims[1:], WIDTH, extra_levels=2, **neck)
            model.heads = RetinaHead(CLASSES, WIDTH, in_channels=WIDTH, **common)
        else:
            model.neck = FeaturePyramid(config.embed_dims, WIDTH, **neck)
            model.rpn = RegionProposalNetwork(WIDTH, in_channels=WIDTH, **common)
            model.box_head = BoxHead(CLASSES, WIDTH, WIDTH, **common)
            model.mask_head = MaskHead(CLASSES, WIDTH, WIDTH, **common)
        return model

    return random_module(make)


def of_features(model: Any, features: tuple[jax.Array, ...]) -> Any:
    """All that a loss reads."""
    if model.head == "retinanet":
        return model.heads(features)
    boxes = jnp.tile(BOXES, (len(features[0]), 1, 1))
    return model.rpn(features), model.box_head(features, boxes), model.mask_head(features, boxes)


@functools.cache
def detect(head: DetectionHead) -> Callable[[Any, Any], tuple[Detections, Any]]:
    """A function of images and sizes; its program is compiled once for all tests. It also gives masks' logits."""
    model = detector(head)
    graphdef, params = nnx.graphdef(model), twins_jax.get_params(model)

    def run(images: Any, sizes: Any) -> tuple[Detections, Any]:
        model = twins_jax.merge_model(graphdef, params)
        if head == "retinanet":
            return model.detect(images, sizes), None
        features = model.features(images)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mask_rcnn, "MAX_PROPOSALS", 150)
            found = model.detections(features, sizes)
        return found, model.mask_head(features, found.boxes)

    return jax.jit(run)


@pytest.mark.parametrize(("head", "strides"), [("retinanet", (8, 16, 32, 64, 128)), ("mask_rcnn", (4, 8, 16, 32, 64))])
def test_shapes_and_dtypes(head: DetectionHead, strides: tuple[int, ...]) -> None:
    """At a size that is a multiple of nothing, computed in bfloat16; boxes are float32."""
    map_sizes = {4: (17, 23), 8: (8, 11), 16: (4, 5), 32: (2, 2), 64: (1, 1), 128: (1, 1)}
    model = detector(head, dtype=jnp.dtype("bfloat16"))
    images = jax.ShapeDtypeStruct((2, 70, 93, 3), jnp.float32)
    features = jax.eval_shape(model.features, images)
    assert [x.shape for x in features] == [(2, *map_sizes[stride], WIDTH) for stride in strides]
    found = jax.eval_shape(lambda features: of_features(model, features), features)
    assert {leaf.dtype for leaf in jax.tree.leaves((features, found))} == {jnp.dtype("bfloat16")}
    channels = (9 * CLASSES, 36) if head == "retinanet" else (3, 12)
    expected = [[(2, *map_sizes[stride], count) for count in channels] for stride in strides]
    dense = found if head == "retinanet" else found[0]
    assert [[x.shape for x in level] for level in dense] == expected
    if head == "mask_rcnn":
        (logits, deltas), masks = found[1:]
        assert (logits.shape, deltas.shape) == ((2, 4, CLASSES + 1), (2, 4, 4 * CLASSES))
        assert masks.shape == (2, 4, 28, 28, CLASSES)
    if head == "retinanet":  # tracing takes the time
        found = jax.eval_shape(model.detections, features, SIZES)
        assert (found.boxes.dtype, found.scores.dtype) == (jnp.float32, jnp.float32)


@pytest.mark.parametrize("head", DETECTORS)
def test_every_parameter_gets_a_gradient(head: DetectionHead, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the pyramid and the heads, and every map of the backbone that is read; its parameters have their own test."""
    model = detector(head)
    graphdef, params = nnx.graphdef(model), twins_jax.get_params(model)
    maps = [random_array(2, 16 >> i, 24 >> i, dim) for i, dim in enumerate(model.config.embed_dims)]

    def loss(params: Any, maps: Any) -> jax.Array:
        monkeypatch.setattr(twins_jax.TwinsBackbone, "__call__", lambda *_, **__: maps)
        model = twins_jax.merge_model(graphdef, params)
        leaves = jax.tree.leaves(of_features(model, model.features(IMAGES)))
        return sum((leaf * random_array(*leaf.shape, seed=i)).sum() for i, leaf in enumerate(leaves))

    of_params, of_maps = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, maps)
    gradients = {path: x for path, x in named(of_params).items() if not path.startswith("backbone/")}
    gradients |= {f"map {i}": np.asarray(x) for i, x in enumerate(of_maps)}
    if head == "retinanet":
        assert not gradients.pop("map 0").any()
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for path, gradient in gradients.items():
        assert np.isfinite(gradient).all(), path
        # float32's noise, where the gradient is zero, is 1e-8 to 1e-7 of the largest.
        assert np.abs(gradient).max() > 1e-5 * largest, path


@pytest.mark.parametrize("head", DETECTORS)
def test_answers_end_at_the_edges_of_their_image(head: DetectionHead) -> None:
    found, _ = detect(head)(IMAGES, SIZES)
    assert [x.shape for x in found[:4]] == [(2, 100, 4), (2, 100), (2, 100), (2, 100)]
    assert [x.dtype for x in found[:4]] == ["float32", "float32", "int32", "bool"]
    if head == "retinanet":
        assert found.masks is None
    else:
        assert (found.masks.shape, found.masks.dtype) == ((2, 100, 28, 28), jnp.float32)
    for i, (height, width) in enumerate(SIZES):
        one = jax.tree.map(lambda x, i=i: np.asarray(x[i]), found)
        count = int(one.valid.sum())
        assert count > 20
        assert (one.valid == (np.arange(100) < count)).all()
        assert (one.scores[:count] > 0.05).all()
        assert (np.diff(one.scores) <= 0).all()
        x1, y1, x2, y2 = one.boxes.T
        assert ((x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height)).all()
        assert ((x1 <= x2) & (y1 <= y2)).all()
        assert (x2 == width).any()  # of the size, not of the padding
        assert np.isin(one.labels, range(CLASSES)).all()
        assert not any(np.asarray(array[count:]).any() for array in (one.boxes, one.scores, one.labels))
        if one.masks is not None:
            assert ((one.masks >= 0) & (one.masks <= 1)).all()


@pytest.mark.parametrize("head", DETECTORS)
def test_images_of_a_batch_do_not_see_each_other(head: DetectionHead) -> None:
    found, _ = detect(head)(IMAGES, SIZES)
    swapped, _ = detect(head)(IMAGES[::-1], SIZES[::-1])
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(swapped), strict=True):
        np.testing.assert_allclose(one, other[::-1], rtol=1e-5, atol=1e-4)


def test_masks_are_of_the_boxes_and_labels() -> None:
    found, logits = detect("mask_rcnn")(IMAGES, SIZES)
    for image in range(2):
        for i in range(100):
            expected = 1 / (1 + np.exp(-logits[image, i, :, :, found.labels[image, i]]))
            np.testing.assert_allclose(found.masks[image, i], expected, atol=1e-5)


def test_sizes_are_those_of_the_images_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    model = abstract_model(lambda rngs: make_detector(NANO, "retinanet", 3, rngs=rngs))
    monkeypatch.setattr(TwinsRetinaNet, "features", lambda *_, **__: ())
    monkeypatch.setattr(TwinsRetinaNet, "detections", lambda _, __, sizes: sizes)
    np.testing.assert_array_equal(model(IMAGES), [[64, 96], [64, 96]])
    np.testing.assert_array_equal(model(IMAGES, SIZES.tolist()), SIZES)


def count(model: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize("index", range(6))
def test_numbers_of_parameters_are_upstreams(index: int) -> None:
    config = detector_config(VARIANTS[index])
    dims = config.embed_dims
    unused = 2 * dims[-1] + 1000 * (dims[-1] + 1)
    model = abstract_model(lambda rngs: twins_jax.create_detector(VARIANTS[index], rngs=rngs))
    assert round((count(model) + unused) / 1e6, 2) == PARAMETERS["retinanet"][index]
    # The backbone is counted once: tracing it takes the time.
    model.neck, model.heads = heads_of_mask_rcnn(dims)
    assert round((count(model) + unused) / 1e6, 2) == PARAMETERS["mask_rcnn"][index]


def heads_of_mask_rcnn(dims: tuple[int, ...]) -> tuple[nnx.Module, nnx.Module]:
    config = dataclasses.replace(NANO, embed_dims=dims, num_heads=(1, 1, 1, 1))
    model = abstract_model(lambda rngs: make_detector(config, "mask_rcnn", 80, rngs=rngs))
    return model.neck, nnx.Dict(rpn=model.rpn, box_head=model.box_head, mask_head=model.mask_head)


STANDARD_DEVIATIONS: tuple[tuple[str, Callable[..., float]], ...] = (
    (r"neck/", lambda h, w, into, out: math.sqrt(2 / (h * w * (into + out)))),
    (r"heads/|rpn/", lambda *_: 0.01),
    (r"shared_fcs", lambda into, out: math.sqrt(2 / (into + out))),
    (r"box_head/cls", lambda *_: 0.01),
    (r"box_head/reg", lambda *_: 0.001),
    (r"upsample", lambda into, h, w, _: math.sqrt(2 / (h * w * into))),
    (r"mask_head/", lambda h, w, _, out: math.sqrt(2 / (h * w * out))),
)
"""Of the kernels that a pattern finds, from their shapes; the first pattern counts."""


def test_initial_values() -> None:
    common: dict[str, Any] = {"dtypes": SVT.dtypes, "rngs": nnx.Rngs(0)}
    xavier = nnx.initializers.xavier_uniform()
    # Of equal widths: each new shape takes time to initialize.
    model = nnx.Dict(
        neck=FeaturePyramid((24, 24), 24, extra_levels=2, kernel_init=xavier, **common),
        heads=RetinaHead(5, 24, in_channels=24, **common),
        rpn=RegionProposalNetwork(24, in_channels=24, **common),
        box_head=BoxHead(5, 24, 24, **common),
        mask_head=MaskHead(36, 24, 24, **common),
    )
    for path, values in named(twins_jax.get_params(model)).items():
        if path == "heads/cls/bias":
            np.testing.assert_allclose(values, -math.log(99), rtol=1e-6)
        elif path.endswith("bias"):
            assert not values.any(), path
        else:
            of_shape = next(rule for pattern, rule in STANDARD_DEVIATIONS if re.search(pattern, path))
            z = values / of_shape(*values.shape)
            # Five standard errors of a mean and of a standard deviation, over about 30 kernels.
            assert abs(z.mean()) < 5 / math.sqrt(z.size), path
            assert abs(z.std() - 1) < 5 / math.sqrt(2 * z.size), path
            is_uniform = np.abs(z).max() <= math.sqrt(3) + 1e-5
            assert is_uniform == bool(re.search("neck|shared_fcs", path)), path


@pytest.mark.parametrize("head", DETECTORS)
def test_the_pyramids_of_detectors_start_from_xaviers_distribution(
    head: DetectionHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, names in (
        (detector_module, ["TwinsBackbone"]),
        (retinanet, ["RetinaHead"]),
        (mask_rcnn, ["RegionProposalNetwork", "BoxHead", "MaskHead"]),
    ):
        for name in names:
            monkeypatch.setattr(module, name, lambda *_, **__: None)
    neck = make_detector(NANO, head, 3, rngs=nnx.Rngs(0)).neck
    assert len(neck.fpn_convs) == (5 if head == "retinanet" else 4)
    for i, conv in enumerate([*neck.lateral_convs, *neck.fpn_convs]):
        kernel = np.asarray(conv.kernel[...])
        limit = math.sqrt(6 / (kernel[..., 0].size + kernel[:, :, 0].size))
        assert 0.9 * limit < np.abs(kernel).max() <= limit * (1 + 1e-5), i


@pytest.mark.parametrize("head", DETECTORS)
def test_every_large_parameter_is_split_over_two_devices(head: DetectionHead) -> None:
    mesh = AbstractMesh((2, 2), AXES, axis_types=(AxisType.Auto,) * 2)
    params = twins_jax.get_params(abstract_model(lambda rngs: make_detector(NANO, head, 80, rngs=rngs)))
    layout = traverse_util.flatten_dict(shardings(params, mesh), sep="/")
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        is_small = leaf.size < 4000 or leaf.ndim == 1
        assert is_small or [axis for axis in layout[path].spec if axis] == ["fsdp"], path


def test_heads_are_the_last_layer() -> None:
    layers = traverse_util.flatten_dict(twins_jax.layer_groups(detector("retinanet")), sep="/")
    assert {layer for path, layer in layers.items() if not path.startswith("backbone/")} == {6}
    assert layers["backbone/stages/0/patch_embed/proj/kernel"] == 0


def test_configuration_of_upstreams_detection() -> None:
    assert detector_config("twins_svt_small").stage_norms
    assert not detector_config("twins_pcpvt_small").stage_norms
    assert detector_config("twins_svt_small").window_padding == "zero"
    given = detector_config("twins_svt_tiny", stage_norms=False, window_padding="mask", drop_path_rate=0.2)
    assert (given.stage_norms, given.window_padding, given.drop_path_rate) == (False, "mask", 0.2)


@pytest.mark.parametrize(("arguments", "message"), bad_arguments("retinanet", "mask_rcnn"), ids=str)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        twins_jax.create_detector("twins_svt_tiny", **({"rngs": nnx.Rngs(0)} | arguments))


def test_bad_names_and_configurations() -> None:
    for name in ("twins_svt_huge", None, 3, ""):
        with pytest.raises(InputError, match=rf"^name={re.escape(repr(name))}: must be one of "):
            twins_jax.create_detector(name, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=r"^config='twins_svt_small': must be "):
        DETECTORS["retinanet"]("twins_svt_small", 5, rngs=nnx.Rngs(0))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="abstract"):
        TwinsDetector(NANO, 5, rngs=nnx.Rngs(0))  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (np.array([64, 96]), r"sizes.shape=\(2,\): must be \(1, 2\), a height and a width for each image"),
        (np.array([[64, 96, 3]]), r"sizes.shape=\(1, 3\): must be \(1, 2\), .*"),
        (np.array([[64, 96], [64, 96]]), r"sizes.shape=\(2, 2\): must be \(1, 2\), .*"),
        (np.array([[64.0, 96.0]]), "sizes.dtype='float.*': must be a dtype of integers"),
        (np.array([[True, True]]), "sizes.dtype='bool': must be a dtype of integers"),
        ("64x96", "sizes: a str that is no array of numbers: .*"),
    ],
    ids=str,
)
def test_bad_sizes(sizes: Any, message: str) -> None:
    model = abstract_model(lambda rngs: make_detector(NANO, "retinanet", 3, rngs=rngs))
    with pytest.raises(InputError, match=f"^{message}$"):
        model.detect(jnp.zeros((1, 64, 96, 3)), sizes)


@pytest.mark.parametrize("head", DETECTORS)
def test_bad_images_and_names_of_classes(head: DetectionHead) -> None:
    model = abstract_model(lambda rngs: make_detector(NANO, head, 3, rngs=rngs))
    for call in (model, model.detect, model.features):
        with pytest.raises(InputError, match=r"^images.shape=\(1, 31, 64, 3\): must be of H and W from 32$"):
            call(jnp.zeros((1, 31, 64, 3)))
        with pytest.raises(InputError, match=r"^images.dtype='uint8': must be a floating-point dtype, "):
            call(jnp.zeros((1, 64, 64, 3), "uint8"))
        with pytest.raises(InputError, match=r"^rngs=0: must be nnx.Rngs with the stream 'dropout'"):
            call(jnp.zeros((1, 64, 64, 3)), rngs=0)
    model.class_names = ["cat", "dog", "cow"]
    assert model.class_names == ("cat", "dog", "cow")
    with pytest.raises(InputError, match=r"^class_names=.+: must be None or 3 strings, one for each of num_classes$"):
        model.class_names = ["cat"]
    model.preprocessing = twins_jax.DetectionPreprocessing(shorter=480)
    with pytest.raises(InputError, match=r"^preprocessing=.+: must be None or a twins_jax.DetectionPreprocessing$"):
        model.preprocessing = twins_jax.Preprocessing()
