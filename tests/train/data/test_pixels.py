import numpy as np
import pytest
from PIL import Image

from train.data import pixels

FILL = (124, 116, 104)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 8), (37, 53), (224, 224), (375, 500), (601, 17)])
@pytest.mark.parametrize(
    "full_size",
    # The last five against 375 x 500: as wide and lower, less than twice, twice and more than twice as much off the
    # height as off the width, and wider but lower: where Pillow starts with the height.
    [(1, 1), (8, 9), (37, 53), (256, 341), (300, 5), (374, 500), (370, 497), (369, 497), (368, 497), (374, 510)],
)
def test_resize_equals_pil(size: tuple[int, int], full_size: tuple[int, int]) -> None:
    image = noise(*size)
    expected = np.asarray(Image.fromarray(image).resize(full_size[::-1], Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(pixels.resize(image, full_size, (0, 0), full_size), expected)
    # Windows at the edges and inside.
    height, width = (full_size[0] + 1) // 2, (full_size[1] + 2) // 3
    for top in {0, (full_size[0] - height) // 2, full_size[0] - height}:
        for left in {0, (full_size[1] - width) // 2, full_size[1] - width}:
            window = pixels.resize(image, full_size, (top, left), (height, width))
            np.testing.assert_array_equal(window, expected[top : top + height, left : left + width])


def test_resize_of_a_part_equals_that_of_a_copy() -> None:
    image = noise(60, 70)
    part = image[11:50, 20:61]
    expected = Image.fromarray(part).resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pixels.resize(part, (32, 32), (0, 0), (32, 32)), np.asarray(expected))


def test_mirrored_window() -> None:
    image = noise(60, 70)
    for full_size in ((40, 50), (20, 69)):  # the two orders of the passes
        window = pixels.resize(image, full_size, (5, 10), (15, 20))
        mirrored = pixels.resize(image, full_size, (5, 10), (15, 20), True)
        np.testing.assert_array_equal(mirrored, window[:, ::-1])


def test_resize_of_extremes_equals_pil() -> None:
    """Overshoot at black and white edges is clipped."""
    image = np.zeros((20, 24, 3), np.uint8)
    image[::3, ::2] = 255
    for size in ((50, 60), (7, 11)):
        expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(pixels.resize(image, size, (0, 0), size), expected)


@pytest.mark.parametrize("size", [(1, 1), (5, 1), (1, 6), (33, 47)])
def test_shift_rows_equals_pil(size: tuple[int, int]) -> None:
    image = noise(*size)
    rng = np.random.default_rng(0)
    for translation in (0.0, 0.5, -0.5, 0.8, 3.0, -3.0, size[1] - 0.5, -size[1] - 0.5, 1e6, *rng.uniform(-20, 20, 20)):
        for shear in (0.0, 0.3, -0.3, *rng.uniform(-0.3, 0.3, 3)):
            matrix = (1, shear, translation, 0, 1, 0)
            expected = Image.fromarray(image).transform(
                size[::-1], Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL
            )
            shifts = shear * (np.arange(size[0]) + 0.5) + translation
            np.testing.assert_array_equal(pixels.shift_rows(image, shifts, FILL), np.asarray(expected))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (33, 47)])
def test_rearrangements(size: tuple[int, int]) -> None:
    image = noise(*size)
    table = np.random.default_rng(1).integers(0, 256, 256, np.uint8)
    np.testing.assert_array_equal(pixels.transpose(image), image.swapaxes(0, 1))
    np.testing.assert_array_equal(pixels.look_up(image, table), table[image])
