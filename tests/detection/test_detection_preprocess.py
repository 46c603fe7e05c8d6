"""Sizes and padded shapes of detectors' images."""

from typing import Any

import numpy as np
import pytest

from twins_jax import InputError
from twins_jax.detection.preprocess import DetectionPreprocessing
from twins_jax.preprocess import IMAGENET_MEAN, IMAGENET_STD

LENGTHS = (832, 960, 1088, 1216, 1344)


def test_defaults() -> None:
    images = DetectionPreprocessing()
    assert (images.shorter, images.longer, images.divisor) == (800, 1333, 32)
    np.testing.assert_array_equal(np.float32([images.mean, images.std]), [IMAGENET_MEAN, IMAGENET_STD])
    assert DetectionPreprocessing(mean=[1, 2], std=[1, 2]) == DetectionPreprocessing(mean=(1.0, 2.0), std=(1.0, 2.0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shorter": 31}, "shorter=31: must be an integer from 32"),
        ({"longer": 799}, "longer=799: must be an integer from shorter, 800"),
        ({"divisor": 0}, "divisor=0: must be an integer up to 1333"),
        ({"divisor": 32.0}, "divisor=32.0: must be an integer up to 1333"),
        ({"std": (0, 1, 1)}, "std=(0, 1, 1): must be a positive number for each channel"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        DetectionPreprocessing(**fields)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("image", "size", "shape"),
    [  # sizes as mmcv's `rescale_size` gives them
        ((480, 640), (800, 1067), (800, 1088)),
        ((427, 640), (800, 1199), (800, 1216)),
        ((640, 480), (1067, 800), (1088, 800)),
        ((500, 500), (800, 800), (800, 832)),
        ((300, 1000), (400, 1333), (800, 1344)),
        ((2000, 100), (1333, 67), (1344, 800)),
        ((360, 640), (750, 1333), (800, 1344)),
    ],
)
def test_size_and_padded_shape(image: tuple[int, int], size: tuple[int, int], shape: tuple[int, int]) -> None:
    images = DetectionPreprocessing()
    assert images.size(*image) == size
    assert images.padded_shape(*size) == shape


def test_every_image_has_one_of_the_shapes() -> None:
    rng = np.random.default_rng(0)
    for shorter, longer, divisor in [(800, 1333, 32), (256, 256, 32), (300, 500, 32), (37, 61, 1), (64, 1000, 7)]:
        images = DetectionPreprocessing(shorter, longer, divisor=divisor)
        shapes = images.padded_shapes
        assert len(set(shapes)) == len(shapes)
        assert {(width, height) for height, width in shapes} == set(shapes)
        assert all(side % divisor == 0 for shape in shapes for side in shape)
        for height, width in np.exp(rng.uniform(np.log(16), np.log(5000), (300, 2))).astype(int):
            size = images.size(int(height), int(width))
            shape = images.padded_shape(*size)
            assert shape in shapes
            assert (np.subtract(shape, size) >= 0).all()
            smaller = [other for other in shapes if np.prod(other) < np.prod(shape)]
            assert all((np.subtract(other, size) < 0).any() for other in smaller)


def test_shapes() -> None:
    expected = [shape for length in LENGTHS for shape in ((800, length), (length, 800))]
    assert DetectionPreprocessing().padded_shapes == tuple(expected)
    assert DetectionPreprocessing(256, 256).padded_shapes == ((256, 256),)
    with pytest.raises(InputError, match=r"^size=\(801, 801\): must be within one of \(\(800, 832\), "):
        DetectionPreprocessing().padded_shape(801, 801)
