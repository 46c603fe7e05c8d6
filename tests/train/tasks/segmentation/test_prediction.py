"""Predictions at the label's size against PyTorch, image by image, for images of several sizes in one batch."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.tasks.segmentation import rows
from train.tasks.segmentation.config import SegmentationDataConfig
from train.tasks.segmentation.groups import input_sizes, plan_batches
from train.tasks.segmentation.prediction import image_name, predict, size_name
from twins_jax import InputError
from twins_jax.preprocess import IMAGENET_MEAN, IMAGENET_STD

torch = pytest.importorskip("torch")

CLASSES = 5
WEIGHTS = np.random.default_rng(3).standard_normal((3, CLASSES)).astype(np.float32)
DATA = SegmentationDataConfig(dir="data", eval_multiple=16)
INPUT, LABEL = (48, 64), (90, 100)
SIZES = [((40, 52), (81, 100)), ((48, 33), (90, 61)), ((47, 64), (35, 48))]  # of the input, and of the label


class Colors:
    """Logits at stride 4 that are linear in the color: a whole image's and a window's, wherever it is."""

    num_classes = CLASSES
    config = SimpleNamespace(in_channels=3, dtype=jnp.float32)

    def logits4(self, images: jax.Array) -> jax.Array:
        return images[:, 1::4, 2::4] @ WEIGHTS

    def __call__(self, images: jax.Array) -> jax.Array:
        return jax.image.resize(self.logits4(images), (*images.shape[:3], CLASSES), "linear", antialias=False)


def make_batch(scales: int = 1) -> dict[str, np.ndarray]:
    """The last row is padding."""
    rng = np.random.default_rng(0)
    batch: dict[str, Any] = {"label": np.full((4, *LABEL), 255, np.uint8), "label_size": np.zeros((4, 2), np.int32)}
    for number in range(scales):
        images, sizes = np.zeros((4, *INPUT, 3), np.uint8), np.zeros((4, 2), np.int32)
        for row, (size, _) in enumerate(SIZES):
            blocks = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            images[row, : size[0], : size[1]] = np.kron(blocks, np.ones((8, 8, 1), np.uint8))[: size[0], : size[1]]
            sizes[row] = size
        batch |= {image_name(number): images, size_name(number): sizes}
    for row, (_, size) in enumerate(SIZES):
        batch["label_size"][row] = size
    return batch


def of_pytorch(logits: np.ndarray, input_size: tuple[int, int], label_size: tuple[int, int]) -> np.ndarray:
    """mmseg's two resizes, of the whole input and then of the part before padding: float64 [K, H, W]."""
    maps = torch.tensor(np.asarray(logits, np.float64).transpose(2, 0, 1)[None])
    options: dict[str, Any] = {"mode": "bilinear", "align_corners": False}
    whole = torch.nn.functional.interpolate(maps, INPUT, **options)
    part = whole[:, :, : input_size[0], : input_size[1]]
    found: np.ndarray = torch.nn.functional.interpolate(part, label_size, **options)[0].numpy()
    return found


def scores(batch: dict[str, np.ndarray], row: int, scales: int, flip: bool) -> np.ndarray:
    (input_size, label_size), total = SIZES[row], np.zeros(())
    for number in range(scales):
        height, width = input_size
        image = np.zeros((*INPUT, 3))
        pixels = batch[image_name(number)][row, :height, :width]
        for mirrored in (False, True) if flip else (False,):
            content = (pixels[:, ::-1] if mirrored else pixels) / 255
            image[:height, :width] = (content - IMAGENET_MEAN) / IMAGENET_STD
            logits = of_pytorch(image[1::4, 2::4] @ WEIGHTS, input_size, label_size)
            probabilities = np.exp(logits) / np.exp(logits).sum(axis=0)
            total = total + (probabilities[..., ::-1] if mirrored else probabilities)
    return total / (scales * (1 + flip))


@pytest.mark.parametrize(("scales", "flip", "step"), [(1, False, 7), (1, False, 200), (2, True, 32)])
def test_predictions_are_those_of_each_image(
    monkeypatch: pytest.MonkeyPatch, scales: int, flip: bool, step: int
) -> None:
    monkeypatch.setattr(rows, "MAX_LOGITS", step * 4 * LABEL[1] * CLASSES)  # rows that are computed at a time
    data = dataclasses.replace(DATA, eval_scales=(1.0,) * scales, eval_flip=flip)
    batch = make_batch(scales)
    found = np.asarray(jax.jit(lambda batch: predict(Colors(), batch, data))(batch))
    assert (found.shape, found.dtype) == ((4, *LABEL), np.uint8)
    for row, (_, (height, width)) in enumerate(SIZES):
        expected = scores(batch, row, scales, flip)
        chosen = np.take_along_axis(expected, found[None, row, :height, :width].astype(np.int64), axis=0)[0]
        # Of two classes that are equal but for rounding either may be chosen; elsewhere the choices are the same.
        np.testing.assert_allclose(chosen, expected.max(axis=0), rtol=0, atol=1e-6)
        assert len(np.unique(found[row, :height, :width])) >= 3


def test_windows_of_a_model_that_sees_no_further_than_a_pixel() -> None:
    """Each window's logits at its own positions, which are the whole image's: strides of 4 keep the grid."""
    data = dataclasses.replace(DATA, crop_size=32, eval_mode="slide", eval_stride=16)
    batch = make_batch()
    whole, slide = (np.asarray(predict(Colors(), batch, settings)) for settings in (DATA, data))
    inside = [(row, slice(height), slice(width)) for row, (_, (height, width)) in enumerate(SIZES)]
    assert np.mean([np.mean(whole[place] == slide[place]) for place in inside]) > 0.9  # all but edges of windows
    assert not np.array_equal(whole, slide)


SIDES = [(100, 200), (200, 100), (101, 199), (300, 600), (200, 101), (100, 201), (40, 900)]


def test_plan_groups_images_by_the_size_of_the_input() -> None:
    data = dataclasses.replace(DATA, shorter=64, longer=256, eval_multiple=16)
    plan = plan_batches(SIDES, data, 2)
    assert [list(batch.examples) for batch in plan] == [[0, 2], [3], [1, 4], [5], [6]]
    assert [batch.shapes for batch in plan] == [
        *[{"image": (64, 128, 3), "label": (300, 600)}] * 2,
        {"image": (128, 64, 3), "label": (200, 101)},
        {"image": (64, 144, 3), "label": (100, 201)},
        {"image": (32, 256, 3), "label": (40, 900)},  # 11 rows, below the least that a model takes
    ]


def test_every_size_is_a_group_without_a_multiple() -> None:
    data = dataclasses.replace(DATA, shorter=64, longer=256, eval_multiple=1)
    assert [batch.shapes["image"][:2] for batch in plan_batches(SIDES, data, 9)] == [
        *[(64, 128), (128, 64), (64, 126), (127, 64), (64, 129), (32, 256)]
    ]


def test_sizes_at_several_scales() -> None:
    data = dataclasses.replace(DATA, shorter=64, longer=256, eval_multiple=1, eval_scales=(0.5, 1.75))
    assert input_sizes((100, 200), data) == ((32, 64), (112, 224))
    (batch,) = plan_batches([(100, 200)], data, 1)
    assert batch.shapes == {"image": (32, 64, 3), "image_1": (112, 224, 3), "label": (100, 200)}


def test_a_batch_of_more_pixels_than_are_counted() -> None:
    with pytest.raises(InputError, match=r"^eval_batch_size=300: must be at most 286 for labels"):
        plan_batches([(2500, 3000)], DATA, 300)
