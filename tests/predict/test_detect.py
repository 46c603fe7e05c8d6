"""`detect` of rectangles whose places are known, and of a RetinaNet called by hand."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import twins_jax
from tests.support.images import picture, saved
from tests.support.models import NANO, random_module
from tests.support.stand_in_detector import (
    RECTANGLES,
    ColorBoxDetector,
    ColorDetector,
    color_detector,
    photograph,
)
from twins_jax import DetectionPreprocessing, InputError, TwinsRetinaNet, detect, image_detector
from twins_jax.segmentation.preprocess import resize

PHOTO = photograph(90, 53)


@pytest.fixture(scope="module")
def model() -> ColorDetector:
    return color_detector()


def test_objects_are_in_pixels_of_the_image(model: ColorDetector) -> None:
    """Also where padding is zero once it is normalized: the model would name others as an object of score 1."""
    for image, scale in ((PHOTO, 1), (photograph(450, 265), 5), (photograph(450, 265)[:, ::-1], -5)):
        [found] = detect(model, [image])
        assert [(each.label, each.name) for each in found] == [(1, "class 1"), (2, "class 2"), (0, "class 0")]
        assert [each.score for each in found] == pytest.approx([0.9, 0.7, 0.4])
        assert {each.image_size for each in found} == {image.shape[:2]}
        for each in found:
            expected = abs(scale) * RECTANGLES[each.label]
            if scale < 0:
                expected[[2, 0]] = image.shape[1] - expected[[0, 2]]
            assert np.abs(each.box - expected).max() <= 1 + 0.7 * (abs(scale) - 1)  # a pixel of the network's


def test_masks_are_of_the_size_of_the_image(model: ColorDetector) -> None:
    image = photograph(300, 130)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    for each in detect(model, [image])[0]:
        x1, y1, x2, y2 = each.box
        from_edge = np.minimum.reduce([x - x1, (x1 + x2) / 2 - x, y - y1, y2 - y])  # of the left half
        is_far = np.abs(from_edge) > 1
        assert each.mask is not None
        assert (each.mask.shape, each.mask.dtype) == (image.shape[:2], bool)
        np.testing.assert_array_equal(each.mask[is_far], from_edge[is_far] > 0)
        assert each.mask.sum() > 500
    assert [each.mask for each in detect(color_detector(ColorBoxDetector), [image])[0]] == [None] * 3


def test_rescaled_boxes_stay_within_the_image() -> None:
    boxes = np.array([[10, 20, 30, 40], [-1, -2, 49.999996, 101]], np.float32)
    found = image_detector.rescaled(boxes, (100, 50), (200, 75))
    np.testing.assert_allclose(found, [[15, 40, 45, 80], [0, 0, 75, 200]], rtol=1e-6)
    assert found.dtype == np.float32


def test_threshold_and_names(model: ColorDetector) -> None:
    def names(threshold: float, image: np.ndarray = PHOTO) -> list[str]:
        return [each.name for each in detect(model, [image], score_threshold=threshold)[0]]

    model.class_names = ["red", "green", "blue"]
    assert names(0) == ["green", "blue", "red"]
    assert names(0.5) == ["green", "blue"]
    assert names(float(np.float32(0.7))) == ["green", "blue"]
    assert names(0.95) == []
    assert names(0.3, photograph(90, 53, "b")) == ["blue"]
    model.class_names = None


def test_pictures_of_all_kinds_share_programs(model: ColorDetector, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    turned = tmp_path / "turned.png"
    turned.write_bytes(saved(Image.fromarray(PHOTO).transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif))
    found = detect(model, [turned, Image.fromarray(PHOTO), saved(Image.fromarray(PHOTO).convert("RGBA"), "PNG"), PHOTO])
    assert len({str([(each.label, each.box) for each in objects]) for objects in found}) == 1
    programs = image_detector._detections._cache_size()
    model.class_names = ["a", "b", "c"]
    for height, width in ((90, 52), (91, 53), (270, 159), (85, 53)):
        assert len(detect(model, photograph(height, width)[None])[0]) == 3
    assert detect(model, [photograph(90, 53, "")[..., 0]]) == [[]]
    assert image_detector._detections._cache_size() == programs
    model.class_names = None
    assert detect(model, []) == []


def test_narrow_images_are_padded(model: ColorDetector) -> None:
    assert detect(model, [np.zeros((1, 500, 3), np.uint8), np.zeros((7, 1, 3), np.uint8)]) == [[], []]


def test_retinanet_equals_the_model_called_by_hand() -> None:
    model = random_module(lambda: TwinsRetinaNet(NANO, 2, rngs=nnx.Rngs(0)))
    model.preprocessing = DetectionPreprocessing(40, 64, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    image = np.asarray(picture(90, 53))
    [found] = detect(model, [image], score_threshold=0.05)
    height, width = model.preprocessing.size(53, 90)
    assert (height, width) == (38, 64)
    pixels = (resize(image, (38, 64)) / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.25, 0.3]
    shape = model.preprocessing.padded_shape(38, 64)
    assert shape[0] > 38
    inputs = np.zeros((1, *shape, 3), np.float32)
    inputs[0, :38, :64] = pixels
    graphdef, params = nnx.graphdef(model), twins_jax.get_params(model)
    by_hand = jax.jit(lambda params, *inputs: twins_jax.merge_model(graphdef, params).detect(*inputs))
    expected = by_hand(params, inputs, np.array([[38, 64]], np.int32))
    count = int(expected.valid.sum())
    assert count == len(found) > 10
    np.testing.assert_array_equal([each.label for each in found], expected.labels[0, :count])
    np.testing.assert_allclose([each.score for each in found], expected.scores[0, :count], rtol=1e-5)
    boxes = np.asarray(expected.boxes[0, :count], np.float64) * np.array([90 / 64, 53 / 38] * 2)
    np.testing.assert_allclose([each.box for each in found], boxes, rtol=1e-4, atol=1e-3)
    assert all(each.mask is None for each in found)


def test_refused(model: ColorDetector) -> None:
    options: dict[str, Any]
    for pictures, options, message in (
        ("photo.jpg", {}, r"pictures=<class 'str'>: must be a list of images"),
        (["none.jpg"], {}, r"none\.jpg: cannot be read"),
        ([PHOTO], {"score_threshold": 1.1}, r"score_threshold=1\.1: must be a number from 0 to 1"),
        ([PHOTO], {"score_threshold": -0.1}, r"score_threshold=-0\.1: must be"),
        ([PHOTO], {"score_threshold": float("nan")}, r"score_threshold=nan: must be"),
        ([PHOTO], {"score_threshold": "0.5"}, r"score_threshold='0\.5': must be"),
        ([PHOTO], {"score_threshold": None}, r"score_threshold=None: must be"),
    ):
        with pytest.raises(InputError, match=message):
            detect(model, pictures, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must be a TwinsRetinaNet or a TwinsMaskRCNN"):
        detect(None, [PHOTO])  # type: ignore[arg-type]
    broken = jax.tree.map(lambda leaf: leaf * np.nan, twins_jax.get_params(model))
    with pytest.raises(InputError, match="the model's outputs are not finite: its weights may be damaged"):
        detect(twins_jax.merge_model(nnx.graphdef(model), broken), [PHOTO])
