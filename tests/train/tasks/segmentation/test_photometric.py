"""Photometric distortion against accounts of mmseg's and OpenCV's steps in NumPy, and OpenCV's recorded result."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.tasks.segmentation.photometric import Distortions, apply, distort, draw, hsv_to_rgb, rgb_to_hsv

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 24, 20, 3), np.uint8)
SEXTANTS = np.array([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]])
"""Of value, low, falling and rising: those that red, green and blue are."""


def to_hsv(rgb: np.ndarray) -> np.ndarray:
    """OpenCV's COLOR_RGB2HSV of uint8 [..., 3], by its tables."""
    of_value, of_spread = (
        np.array([0, *(round((top << 12) / (parts * i)) for i in range(1, 256))]) for top, parts in ((255, 1), (180, 6))
    )
    red, green, blue = np.moveaxis(rgb.astype(np.int64), -1, 0)
    value = rgb.max(-1).astype(np.int64)
    spread = value - rgb.min(-1)
    turned = np.select(
        [value == red, value == green], [green - blue, blue - red + 2 * spread], red - green + 4 * spread
    )
    hue = (turned * of_spread[spread] + 2048) >> 12
    return np.stack([hue + 180 * (hue < 0), (spread * of_value[value] + 2048) >> 12, value], -1).astype(np.uint8)


def to_rgb(hsv: np.ndarray) -> np.ndarray:
    """OpenCV's COLOR_HSV2RGB of uint8 [..., 3]: float32, with 1 - s * part in one rounding (FMA), truncated."""
    hue, s, v = (
        np.float32(scale) * hsv[..., i].astype(np.float32) for i, scale in enumerate((6 / 180, 1 / 255, 1 / 255))
    )
    sextant = np.floor(hue).astype(int)
    part = hue - sextant.astype(np.float32)

    def below(factor: np.ndarray) -> np.ndarray:
        return v * (1 - s.astype(np.float64) * factor).astype(np.float32)

    corners = np.stack([v, v * (1 - s), below(part), below(np.float32(1) - part)], -1) * np.float32(255)
    return np.take_along_axis(corners, SEXTANTS[sextant], -1).astype(np.uint8)


def grid(*ranges: range) -> np.ndarray:
    return np.stack(np.meshgrid(*ranges, indexing="ij"), -1).astype(np.uint8)


def planes(images: np.ndarray) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(images[..., channel], jnp.int32) for channel in range(3))


def test_hsv_equals_opencv() -> None:
    """The CRC-32 of `cv2.cvtColor` (OpenCV 5.0.0) is known for these colors."""
    colors = grid(range(0, 256, 15), range(256), range(256))
    hsv = np.stack(jax.jit(rgb_to_hsv)(planes(colors)), -1).astype(np.uint8)
    assert zlib.crc32(hsv) == zlib.crc32(to_hsv(colors)) == 0xD5AA66B3


def test_rgb_equals_opencv_but_for_single_steps() -> None:
    hsv = grid(range(180), range(0, 256, 7), range(0, 256, 7))
    expected = to_rgb(hsv)
    assert zlib.crc32(expected) == 0x6001C836  # of cv2.cvtColor, by its vector instructions
    # With products and sums rounded together and apart, as compilers choose.
    for convert in (jax.jit(hsv_to_rgb), hsv_to_rgb):
        off = np.stack(convert(planes(hsv)), -1) - expected.astype(int)
        assert abs(off).max() <= 1
        assert (off != 0).mean() < 5e-5  # the share of all colors


NONE = Distortions(
    brightness=np.zeros(3, np.float32),
    first_contrast=np.ones(3, np.float32),
    saturates=np.zeros(3, bool),
    saturation=np.ones(3, np.float32),
    turns_hue=np.zeros(3, bool),
    hue=np.zeros(3, np.int32),
    last_contrast=np.ones(3, np.float32),
)


def scaled(values: np.ndarray, factors: np.ndarray) -> np.ndarray:
    shape = (-1,) + (1,) * (values.ndim - 1)
    return np.clip(values.astype(np.float32) * factors.astype(np.float32).reshape(shape), 0, 255).astype(np.uint8)


def saturated(images: np.ndarray, factors: np.ndarray) -> np.ndarray:
    hsv = to_hsv(images)
    hsv[..., 1] = scaled(hsv[..., 1], factors)
    return to_rgb(hsv)


def turned(images: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    hsv = to_hsv(images)
    hsv[..., 0] = (hsv[..., 0].astype(int) + shifts[:, None, None]) % 180
    return to_rgb(hsv)


def distorted(**changes: object) -> np.ndarray:
    return np.asarray(jax.jit(apply)(NONE._replace(**changes), IMAGES))


def assert_within_one(actual: np.ndarray, expected: np.ndarray) -> None:
    off = abs(actual.astype(int) - expected)
    assert off.max() <= 1
    assert (off != 0).mean() < 1e-3


def test_nothing_is_changed_where_nothing_is_drawn() -> None:
    np.testing.assert_array_equal(distorted(), IMAGES)


def test_brightness_and_contrast() -> None:
    offsets = np.array([-31.75, 0.0, 20.5], np.float32)
    expected = np.clip(IMAGES + offsets[:, None, None, None], 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(distorted(brightness=offsets), expected)
    factors = np.array([0.5, 1.0, 1.4375], np.float32)
    for field in ("first_contrast", "last_contrast"):
        np.testing.assert_array_equal(distorted(**{field: factors}), scaled(IMAGES, factors))


def test_saturation_and_hue() -> None:
    some, factors, shifts = np.array([True, False, True]), np.array([0.5, 1.5, 1.3]), np.array([-18, 5, 17])
    actual = distorted(saturates=some, saturation=np.float32(factors))
    assert_within_one(actual[some], saturated(IMAGES, factors)[some])
    np.testing.assert_array_equal(actual[1], IMAGES[1])
    actual = distorted(turns_hue=some, hue=np.int32(shifts))
    assert_within_one(actual[some], turned(IMAGES, shifts)[some])
    np.testing.assert_array_equal(actual[1], IMAGES[1])
    assert (actual[0] != IMAGES[0]).mean() > 0.5


@pytest.mark.parametrize("is_first", [True, False])
def test_order(is_first: bool) -> None:
    offsets, factors, contrasts = (
        np.float32([a, b, c]) for a, b, c in ((25, -25, 9), (0.7, 1.4, 1.2), (1.45, 0.6, 1.3))
    )
    shifts = np.array([-7, 12, 3])
    actual = distorted(
        brightness=offsets,
        **{"first_contrast" if is_first else "last_contrast": contrasts},
        saturates=np.ones(3, bool),
        saturation=factors,
        turns_hue=np.ones(3, bool),
        hue=np.int32(shifts),
    )
    expected = np.clip(IMAGES + offsets[:, None, None, None], 0, 255).astype(np.uint8)
    if is_first:
        expected = scaled(expected, contrasts)
    expected = turned(saturated(expected, factors), shifts)
    np.testing.assert_allclose(actual, expected if is_first else scaled(expected, contrasts), rtol=0, atol=2)
    assert (actual != (expected if is_first else scaled(expected, contrasts))).mean() < 1e-3


def test_draws() -> None:
    count = 20_000
    drawn = jax.tree.map(np.asarray, jax.jit(draw, static_argnums=1)(jax.random.key(3), count))
    contrasts, first = np.minimum(drawn.first_contrast, drawn.last_contrast) != 1, drawn.first_contrast != 1
    contrasts |= np.maximum(drawn.first_contrast, drawn.last_contrast) != 1
    coins = [drawn.brightness != 0, contrasts, drawn.saturates, drawn.turns_hue]
    for coin in (*coins, first[contrasts]):
        assert abs(coin.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(coin))
    assert not ((drawn.first_contrast != 1) & (drawn.last_contrast != 1)).any()
    assert abs(np.corrcoef(coins) - np.eye(4)).max() < 4 / np.sqrt(count)  # each has its own
    both = np.where(first, drawn.first_contrast, drawn.last_contrast)[contrasts]
    for values, low, high in ((drawn.brightness[coins[0]], -32, 32), (both, 0.5, 1.5), (drawn.saturation, 0.5, 1.5)):
        assert low <= values.min() < values.max() <= high
        quantiles = np.quantile(values, [0.25, 0.5, 0.75])
        np.testing.assert_allclose((quantiles - low) / (high - low), [0.25, 0.5, 0.75], atol=0.02)
    hues, counts = np.unique(drawn.hue, return_counts=True)
    np.testing.assert_array_equal(hues, np.arange(-18, 18))
    assert (abs(counts - count / 36) < 4.5 * np.sqrt(count / 36)).all()


def test_each_image_has_draws_of_its_own() -> None:
    same = np.repeat(IMAGES[:1], 16, axis=0)
    first, again, other = (np.asarray(jax.jit(distort)(jax.random.key(seed), same)) for seed in (0, 0, 1))
    assert (first.shape, first.dtype) == (same.shape, np.uint8)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert len({image.tobytes() for image in first}) > 12  # one in 32 has no change
