"""Random brightness, contrast, saturation and hue on the device: mmseg 0.12's `PhotoMetricDistortion`.

Saturation and hue are changed in OpenCV's HSV of 8 bits, with H in [0, 180). RGB to HSV equals OpenCV 5.0's for each of
the 2**24 colors. The way back equals it where the compiler makes one instruction of a product and a sum, as OpenCV
does; elsewhere 5 in 100,000 values are off by 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

BRIGHTNESS = 32.0
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18
"""mmseg's defaults, which upstream keeps."""

Planes = tuple[jax.Array, ...]
"""The three channels of images, each int32 [B, H, W]."""


class Distortions(NamedTuple):
    """The changes of each image, in the order in which they are made; arrays [B]."""

    brightness: jax.Array
    """float32, added to all values; 0: none."""

    first_contrast: jax.Array
    """float32, factor on all values; 1: none."""

    saturates: jax.Array
    """bool: S of HSV is multiplied by `saturation`. Even a factor of 1 rounds to HSV and back."""

    saturation: jax.Array
    """float32."""

    turns_hue: jax.Array
    """bool: `hue` is added to H of HSV, modulo 180."""

    hue: jax.Array
    """int32."""

    last_contrast: jax.Array
    """float32, factor on all values; 1: none. One of the two contrasts is 1."""


def distort(key: jax.Array, images: jax.Array) -> jax.Array:
    """Changes the colors of each image at random.

    Args:
        key: decides everything that is drawn.
        images: uint8 [B, H, W, 3], RGB.

    Returns:
        uint8 [B, H, W, 3].
    """
    return apply(draw(key, len(images)), images)


def draw(key: jax.Array, count: int) -> Distortions:
    """Draws the changes of `count` images, each with probability 1/2, and the place of the contrast likewise."""
    coins_key, brightness_key, contrast_key, saturation_key, hue_key = jax.random.split(key, 5)
    brightens, contrasts, is_first, saturates, turns_hue = jax.random.bernoulli(coins_key, 0.5, (5, count))
    brightness = jax.random.uniform(brightness_key, (count,), jnp.float32, -BRIGHTNESS, BRIGHTNESS)
    contrast = jax.random.uniform(contrast_key, (count,), jnp.float32, *CONTRAST)
    return Distortions(
        brightness=jnp.where(brightens, brightness, 0.0),
        first_contrast=jnp.where(contrasts & is_first, contrast, 1.0),
        saturates=saturates,
        saturation=jax.random.uniform(saturation_key, (count,), jnp.float32, *SATURATION),
        turns_hue=turns_hue,
        hue=jax.random.randint(hue_key, (count,), -HUE, HUE, jnp.int32),
        last_contrast=jnp.where(contrasts & ~is_first, contrast, 1.0),
    )


def apply(distortions: Distortions, images: jax.Array) -> jax.Array:
    """Makes the changes of each image; shapes as `distort`."""
    change = Distortions(*(values[:, None, None] for values in distortions))
    planes: Planes = tuple(images[..., channel].astype(jnp.int32) for channel in range(3))
    planes = _each(planes, lambda plane: _truncate(_float(plane) + change.brightness))
    planes = _each(planes, lambda plane: _truncate(_float(plane) * change.first_contrast))
    hue, saturation, value = rgb_to_hsv(planes)
    saturated = hsv_to_rgb((hue, _truncate(_float(saturation) * change.saturation), value))
    planes = _where(change.saturates, saturated, planes)
    hue, saturation, value = rgb_to_hsv(planes)
    turned = hsv_to_rgb(((hue + change.hue) % 180, saturation, value))
    planes = _where(change.turns_hue, turned, planes)
    planes = _each(planes, lambda plane: _truncate(_float(plane) * change.last_contrast))
    return jnp.stack(planes, axis=-1).astype(jnp.uint8)


def _each(planes: Planes, change: Callable[[jax.Array], jax.Array]) -> Planes:
    return tuple(change(plane) for plane in planes)


def _float(plane: jax.Array) -> jax.Array:
    return plane.astype(jnp.float32)


def _truncate(values: jax.Array) -> jax.Array:
    return jnp.clip(values, 0.0, 255.0).astype(jnp.int32)


def _where(condition: jax.Array, planes: Planes, others: Planes) -> Planes:
    return tuple(jnp.where(condition, *pair) for pair in zip(planes, others, strict=True))


def rgb_to_hsv(planes: Planes) -> Planes:
    """Converts 0..255 to H in 0..179 and S and V in 0..255, as OpenCV's COLOR_RGB2HSV of uint8."""
    red, green, blue = planes
    value = jnp.maximum(jnp.maximum(red, green), blue)
    spread = value - jnp.minimum(jnp.minimum(red, green), blue)
    turned = jnp.where(
        value == red, green - blue, jnp.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    )
    saturation = (spread * _quotient(255 << 12, value) + 2048) >> 12
    hue = (turned * _quotient((180 << 12) // 6, spread) + 2048) >> 12
    return jnp.where(hue < 0, hue + 180, hue), saturation, value


def _quotient(dividend: int, divisor: jax.Array) -> jax.Array:
    """Divides and rounds to the nearest; OpenCV has the results in tables, which TPUs would be slow to look up."""
    divisor = jnp.maximum(divisor, 1)  # the product with a spread of 0 is 0
    return (2 * dividend + divisor) // (2 * divisor)


def hsv_to_rgb(planes: Planes) -> Planes:
    """Converts back, in float32 and truncated, as OpenCV's COLOR_HSV2RGB of uint8; H must be in 0..179."""
    hue, saturation, value = planes
    sextants = _float(hue) * (6 / 180)
    sextant = sextants.astype(jnp.int32)
    part = sextants - _float(sextant)
    s, v = _float(saturation) * (1 / 255), _float(value) * (1 / 255)
    low, falling, rising = ((v * (1 - product) * 255).astype(jnp.int32) for product in (s, s * part, s * (1 - part)))
    return (
        jax.lax.select_n(sextant, value, falling, low, low, rising, value),
        jax.lax.select_n(sextant, rising, value, value, falling, low, low),
        jax.lax.select_n(sextant, low, low, rising, value, value, falling),
    )
