"""`segment` against the model called by hand and PyTorch's interpolation."""

import functools
from collections.abc import Callable
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
from twins_jax import InputError, SegmentationPreprocessing, TwinsSegmenter, image_segmenter, normalize, segment
from twins_jax.segmentation import inference
from twins_jax.segmentation.preprocess import resize

PHOTO = np.asarray(picture(90, 53))


@pytest.fixture(scope="module")
def model() -> TwinsSegmenter:
    segmenter = random_module(lambda: TwinsSegmenter(NANO, "semantic_fpn", 5, rngs=nnx.Rngs(0)))
    segmenter.preprocessing = SegmentationPreprocessing(40, 64, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    # Random weights give all pixels of a photograph the same class, unless each class is as probable as the others.
    seen = image_segmenter.ImageSegmenter(segmenter)
    logits, _ = image_segmenter._logits(seen._graphdef, *seen._arrays, seen.prepare(PHOTO).inputs[0][None], None)
    bias = segmenter.decode_head.classifier.conv.bias
    bias.set_value(bias.get_value() - logits.mean(axis=(0, 1)))
    return segmenter


def by_hand(
    model: TwinsSegmenter,
    image: np.ndarray,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    compute: Callable[[jax.Array], jax.Array] | None = None,
) -> np.ndarray:
    """The mean probabilities of each pixel, as mmseg's `aug_test` computes them: float64 [H, W, classes].

    `compute` takes normalized images to logits of their size; the model does if it is None.
    """
    torch = pytest.importorskip("torch")
    apply, params, batch_stats = twins_jax.split_model(model)
    compute = compute or functools.partial(jax.jit(apply), params, batch_stats)
    preprocessing = model.preprocessing
    assert preprocessing
    passes = []
    for scale in scales:
        pixels = resize(image, preprocessing.size(*image.shape[:2], scale))
        for is_flipped in (False, True)[: 1 + flip]:
            given = pixels[:, ::-1] if is_flipped else pixels
            inputs = normalize(given[None], preprocessing.mean, preprocessing.std)
            logits = np.array(compute(inputs), np.float64)
            resized = torch.nn.functional.interpolate(
                torch.from_numpy(logits.transpose(0, 3, 1, 2)), image.shape[:2], mode="bilinear", align_corners=False
            )
            probabilities = torch.softmax(resized, 1).numpy()[0].transpose(1, 2, 0)
            passes.append(probabilities[:, ::-1] if is_flipped else probabilities)
    return np.mean(passes, axis=0)


def assert_most_probable(labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Two classes whose probabilities differ by less than rounding may change places."""
    assert (labels.shape, labels.dtype) == (probabilities.shape[:2], np.uint8)
    of_labels = np.take_along_axis(probabilities, labels[..., None].astype(int), axis=-1)[..., 0]
    assert (probabilities.max(axis=-1) - of_labels).max() < 1e-5
    assert len(np.unique(labels)) > 2


def test_labels_are_the_most_probable_classes(model: TwinsSegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "MAX_CHUNK", 256 * 5 * 16)  # of 53 rows 16 at a time
    assert_most_probable(segment(model, [PHOTO])[0], by_hand(model, PHOTO))


def test_scales_and_flip(model: TwinsSegmenter) -> None:
    [labels] = segment(model, [PHOTO], scales=[1.0, 1.5], flip=True)
    assert_most_probable(labels, by_hand(model, PHOTO, (1.0, 1.5), flip=True))


def test_windows(model: TwinsSegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The windows' own logits are compared in tests/models/test_inference.py."""
    given: list[tuple[jax.Array, dict[str, int]]] = []

    def slide(_: TwinsSegmenter, images: jax.Array, **windows: int) -> jax.Array:
        given.append((images, windows))
        return logits[None]

    logits = np.random.default_rng(0).standard_normal((38, 64, 5), np.float32)
    monkeypatch.setattr(image_segmenter, "slide_logits", slide)
    [labels] = segment(model, [PHOTO], crop_size=36)
    assert_most_probable(labels, by_hand(model, PHOTO, compute=lambda _: logits[None]))
    segment(model, [PHOTO], crop_size=36, stride=20)
    assert [(images.shape, windows) for images, windows in given] == [
        ((1, 38, 64, 3), {"crop_size": 36, "stride": stride}) for stride in (24, 20)
    ]


def test_sizes_are_those_of_the_pictures(model: TwinsSegmenter, tmp_path: Path) -> None:
    """Of all kinds of pictures, with one program of the model for all, as their shapes are alike."""
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    photo = picture(53, 90).transpose(Image.Transpose.ROTATE_90)
    turned = tmp_path / "turned.png"
    turned.write_bytes(saved(photo, "PNG", exif=exif))
    upright, gray = picture(53, 90), picture(106, 180).convert("L")
    labels = segment(model, [turned, upright, gray, np.asarray(gray), saved(picture(53, 90).convert("RGBA"), "PNG")])
    assert [each.shape for each in labels] == [(90, 53), (90, 53), (180, 106), (180, 106), (90, 53)]
    np.testing.assert_array_equal(labels[0], labels[1])
    np.testing.assert_array_equal(labels[2], labels[3])
    np.testing.assert_array_equal(labels[4], labels[1])
    programs = image_segmenter._logits._cache_size()
    model.class_names = ["a", "b", "c", "d", "e"]
    segment(model, np.zeros((1, 270, 159, 3), np.uint8))
    assert image_segmenter._logits._cache_size() == programs
    assert segment(model, []) == []


def test_refused(model: TwinsSegmenter) -> None:
    options: dict[str, Any]
    for pictures, options, message in (
        ("photo.jpg", {}, r"pictures=<class 'str'>: must be a list of images"),
        ([np.zeros((10, 200, 3), np.uint8)], {}, r"picture='200 x 10 pixels': must be 32 pixels or more both ways"),
        (["none.jpg"], {}, r"none\.jpg: cannot be read"),
        ([PHOTO], {"scales": []}, r"scales=\[\]: must be a list of positive numbers up to 16"),
        ([PHOTO], {"scales": [1, float("nan")]}, r"scales=\[1, nan\]: must be"),
        ([PHOTO], {"scales": 1.0}, r"scales=1\.0: must be"),
        ([PHOTO], {"scales": "1"}, r"scales='1': must be"),
        ([PHOTO], {"flip": 1}, r"flip=1: must be True or False"),
        ([PHOTO], {"stride": 20}, r"stride=20: must be None without crop_size"),
        ([PHOTO], {"crop_size": 31}, r"crop_size=31: must be an integer from 32"),
        ([PHOTO], {"crop_size": "40"}, r"crop_size='40': must be an integer from 32"),
        ([PHOTO], {"crop_size": 40, "stride": 41}, r"stride=41: must be an integer from 1 to crop_size, 40"),
    ):
        with pytest.raises(InputError, match=message):
            segment(model, pictures, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must be a TwinsSegmenter"):
        segment(None, [PHOTO])  # type: ignore[arg-type]
    broken = jax.tree.map(lambda leaf: leaf * np.nan, twins_jax.get_params(model))
    nan = twins_jax.merge_model(nnx.graphdef(model), broken, twins_jax.get_batch_stats(model))
    with pytest.raises(InputError, match="the model's outputs are not finite: its weights may be damaged"):
        segment(nan, [PHOTO])
