"""The kernels against OpenCV 5.0.0, whose results are recorded by their checksums, and against NumPy."""

import zlib

import numpy as np
import pytest

from train.data import opencv
from twins_jax.segmentation.preprocess import resize

RECORDED = [
    ((100, 128), (20, 25), 0xFCAADA80, 0x2F625611),
    ((37, 53), (111, 159), 0xECA4BF15, 0x155A7633),
    ((1, 1), (5, 7), 0xD0E82AC1, 0x09F85737),
    ((1, 9), (4, 3), 0x3D6E6FF5, 0xB1EE7379),
    ((9, 1), (3, 8), 0x9357F237, 0x58961AA4),
    ((33, 50), (51, 76), 0xD3711030, 0x18A28D20),
    ((64, 48), (32, 24), 0xD891B544, 0x3391D991),
    ((97, 31), (29, 117), 0x3C1E162A, 0x2B00E6C8),
    ((40, 60), (80, 120), 0x853B9038, 0x83D8F95C),
    ((31, 100), (17, 99), 0xA085F3CF, 0x50A19794),
]
"""Size, new size, and the CRC-32 of `cv2.resize` of `pattern`: INTER_LINEAR of it, INTER_NEAREST of its red."""


def pattern(height: int, width: int) -> np.ndarray:
    i = np.arange(height * width * 3, dtype=np.int64)
    return ((i * i * 31 + i * 7) // 5 % 256).astype(np.uint8).reshape(height, width, 3)


@pytest.mark.parametrize(("size", "new_size", "bilinear", "nearest"), RECORDED)
def test_whole_images_equal_opencv(
    size: tuple[int, int], new_size: tuple[int, int], bilinear: int, nearest: int
) -> None:
    image = pattern(*size)
    assert zlib.crc32(opencv.resize_bilinear(image, new_size, (0, 0), new_size)) == bilinear
    assert zlib.crc32(resize(image, new_size)) == bilinear
    assert zlib.crc32(opencv.resize_nearest(np.ascontiguousarray(image[..., 0]), new_size, (0, 0), new_size)) == nearest


@pytest.mark.parametrize(("length", "wanted"), [(5, 9), (7, 3), (200, 61), (61, 200), (1, 4)])
def test_nearest_is_the_floor(length: int, wanted: int) -> None:
    line = np.arange(length, dtype=np.uint8)[None]
    expected = np.arange(wanted) * length // wanted
    np.testing.assert_array_equal(opencv.resize_nearest(line, (1, wanted), (0, 0), (1, wanted))[0], expected)
    turned = opencv.resize_nearest(line.reshape(-1, 1), (wanted, 1), (0, 0), (wanted, 1))
    np.testing.assert_array_equal(turned[:, 0], expected)


@pytest.mark.parametrize(("length", "wanted", "below"), [(4, 196, [49, 98, 147]), (6, 34, [17])])
def test_nearest_rounds_as_opencv_where_the_floor_is_at_its_edge(length: int, wanted: int, below: list[int]) -> None:
    line = opencv.resize_nearest(np.arange(length, dtype=np.uint8)[None], (1, wanted), (0, 0), (1, wanted))[0]
    expected = np.arange(wanted) * length // wanted
    expected[below] -= 1
    np.testing.assert_array_equal(line, expected)  # as cv2.resize has it


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("size", "full_size"), [((37, 53), (90, 120)), ((60, 41), (23, 30)), ((50, 70), (50, 70))])
def test_windows_are_parts_of_the_whole(size: tuple[int, int], full_size: tuple[int, int], mirror: bool) -> None:
    image = pattern(*size)
    labels = np.ascontiguousarray(image[..., 1])
    whole = resize(image, full_size), opencv.resize_nearest(labels, full_size, (0, 0), full_size)
    height, width = full_size[0] // 2, full_size[1] // 3
    for top in (0, 7, full_size[0] - height):
        for left in (0, 5, full_size[1] - width):
            window = (top, left), (height, width), mirror
            part = slice(top, top + height), slice(left, left + width)
            for result, expected in zip(
                (opencv.resize_bilinear(image, full_size, *window), opencv.resize_nearest(labels, full_size, *window)),
                whole,
                strict=True,
            ):
                np.testing.assert_array_equal(result, expected[part][:, ::-1] if mirror else expected[part])


def test_counts() -> None:
    labels = np.ascontiguousarray(pattern(30, 41)[..., 2])
    np.testing.assert_array_equal(opencv.count_labels(labels), np.bincount(labels.ravel(), minlength=256))
