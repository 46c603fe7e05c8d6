"""Windows that slide over images, against a loop over them in NumPy."""

from collections.abc import Callable

import jax
import numpy as np
import pytest
from flax import nnx

import twins_jax
from tests.support.models import NANO, random_array, random_module
from twins_jax import InputError, TwinsSegmenter
from twins_jax.segmentation.inference import slide_logits

CLASSES = 3


@pytest.fixture(scope="module")
def segmenter() -> TwinsSegmenter:
    return random_module(lambda: TwinsSegmenter(NANO, "semantic_fpn", CLASSES, rngs=nnx.Rngs(0)))


def naive(model: Callable[[np.ndarray], np.ndarray], images: np.ndarray, crop: int, stride: int) -> np.ndarray:
    """mmseg's `slide_inference`, line by line."""
    height, width = images.shape[1:3]
    total, count = np.zeros((*images.shape[:3], CLASSES)), np.zeros((1, height, width, 1))
    for i in range(max(height - crop + stride - 1, 0) // stride + 1):
        for j in range(max(width - crop + stride - 1, 0) // stride + 1):
            bottom, right = min(i * stride + crop, height), min(j * stride + crop, width)
            window = np.s_[:, max(bottom - crop, 0) : bottom, max(right - crop, 0) : right]
            total[window] += model(images[window])
            count[window] += 1
    assert count.min() >= 1
    return total / count


@pytest.mark.parametrize(
    ("height", "width", "crop", "stride"),
    [
        (41, 67, 36, 11),  # the last windows are shifted inside
        (34, 100, 40, 40),  # lower than a window, and windows side by side
    ],
)
def test_sliding_windows(segmenter: TwinsSegmenter, height: int, width: int, crop: int, stride: int) -> None:
    images = random_array(2, height, width, 3)
    apply, params, batch_stats = twins_jax.split_model(segmenter)
    model = jax.jit(apply)

    def slide(model: TwinsSegmenter, images: jax.Array, **_: object) -> jax.Array:
        return slide_logits(model, images, crop_size=crop, stride=stride)

    found = jax.jit(twins_jax.split_model(segmenter, slide)[0])(params, batch_stats, images)
    expected = naive(lambda window: np.asarray(model(params, batch_stats, window)), images, crop, stride)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_windows_refused(segmenter: TwinsSegmenter) -> None:
    images = random_array(1, 64, 64, 3)
    for crop, stride, message in (
        (31, 31, "crop_size=31: must be an integer from 32"),
        (40.0, 20, "crop_size=40.0: must be an integer from 32"),
        (40, 41, "stride=41: must be an integer from 1 to crop_size, 40: windows leave no gaps"),
        (40, 0, "stride=0: must be an integer from 1 to crop_size, 40"),
    ):
        with pytest.raises(InputError, match=message):
            slide_logits(segmenter, images, crop_size=crop, stride=stride)  # type: ignore[arg-type]
