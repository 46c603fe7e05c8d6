"""`segment` against the model called by hand and PyTorch's interpolation."""

import io
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import twins_jax
from tests.support.images import picture, saved
from tests.support.models import NANO, random_module
from twins_jax import InputError, SegmentationPreprocessing, TwinsSegmenter, normalize, segment
from twins_jax.segmentation.inference import slide_logits
from twins_jax.segmentation.preprocess import resize

CLASSES = 5


@pytest.fixture(scope="module")
def model() -> TwinsSegmenter:
    segmenter = random_module(lambda: TwinsSegmenter(NANO, "semantic_fpn", CLASSES, rngs=nnx.Rngs(0)))
    segmenter.preprocessing = SegmentationPreprocessing(40, 64, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    return segmenter


def by_hand(model: TwinsSegmenter, image: np.ndarray, scales: tuple[float, ...], flip: bool) -> np.ndarray:
    """The mean probabilities of each pixel, as mmseg's `aug_test` computes them: float64 [H, W, classes]."""
    torch = pytest.importorskip("torch")
    apply, params, batch_stats = twins_jax.split_model(model)
    preprocessing = model.preprocessing
    assert preprocessing
    passes = []
    for scale in scales:
        pixels = resize(image, preprocessing.size(*image.shape[:2], scale))
        for given in (pixels, pixels[:, ::-1])[: 1 + flip]:
            inputs = normalize(given[None], preprocessing.mean, preprocessing.std)
            logits = np.array(jax.jit(apply)(params, batch_stats, inputs), np.float64)
            resized = torch.nn.functional.interpolate(
                torch.from_numpy(logits.transpose(0, 3, 1, 2)), image.shape[:2], mode="bilinear", align_corners=False
            )
            probabilities = torch.softmax(resized, 1).numpy()[0].transpose(1, 2, 0)
            passes.append(probabilities if given is pixels else probabilities[:, ::-1])
    return np.mean(passes, axis=0)


def assert_most_probable(labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Two classes whose probabilities differ by less than rounding may change places."""
    assert labels.shape == probabilities.shape[:2]
    of_labels = np.take_along_axis(probabilities, labels[..., None].astype(int), axis=-1)[..., 0]
    assert (probabilities.max(axis=-1) - of_labels).max() < 1e-5
    assert len(np.unique(labels)) > 2


@pytest.mark.parametrize(("scales", "flip"), [((1.0,), False), ((1.0, 1.5), True)])
def test_labels_are_the_most_probable_classes(model: TwinsSegmenter, scales: tuple[float, ...], flip: bool) -> None:
    photo = np.asarray(picture(90, 53))
    [labels] = segment(model, [photo], scales=scales, flip=flip)
    assert labels.dtype == np.uint8
    assert_most_probable(labels, by_hand(model, photo, scales, flip))


def test_windows(model: TwinsSegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = np.asarray(picture(90, 53))
    [labels] = segment(model, [photo], crop_size=36)

    def slide(model: TwinsSegmenter, images: jax.Array, **_: Any) -> jax.Array:
        return slide_logits(model, images, crop_size=36, stride=24)

    monkeypatch.setattr(TwinsSegmenter, "__call__", TwinsSegmenter.__call__)
    apply, params, batch_stats = twins_jax.split_model(model, slide)
