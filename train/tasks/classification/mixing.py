"""Mixup, cutmix and random erasing, on the device inside the jitted training step.

All three act on normalized images: erased pixels are normal noise of the images' own mean and deviation, which uint8
batches could not hold, and mixed pixels fall between the gray levels. In the order of timm's training script:
normalize, `random_erase`, `mix`.
"""

import math

import jax
import jax.numpy as jnp

from .config import MixConfig

# timm.data.random_erasing.RandomErasing's defaults, from Zhong et al. 2017.
ERASE_AREA = 0.02, 1 / 3
ERASE_ASPECT = 0.3, 1 / 0.3
ERASE_TRIES = 10


def mix(
    key: jax.Array, images: jax.Array, targets: jax.Array, config: MixConfig, repeats: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image of a batch with the next one (`following`), by mixup or cutmix.

    One weight, and one box, is drawn for the whole batch: timm.data.Mixup's mode "batch". Zhang et al. 2017 (mixup),
    Yun et al. 2019 (cutmix).

    Args:
        key: Decides everything that is drawn.
        images: float [B, H, W, C], normalized.
        targets: float [B, classes], with label smoothing if any; mixing smoothed targets is smoothing mixed ones.
        config: Static.
        repeats: Static; the views of an example that follow each other in the batch.

    Returns:
        Images and targets of the same shapes and dtypes.
    """
    if not config.mixup_alpha and not config.cutmix_alpha:
        return images, targets
    weights, share = draw_weights(key, images.shape[1], images.shape[2], config)
    return blend(images, targets, weights, share, repeats)


def draw_weights(key: jax.Array, height: int, width: int, config: MixConfig) -> tuple[jax.Array, jax.Array]:
    """Draws the share that stays of each pixel, float32 [H, W], and of the targets, float32 []: 1 without mixing.

    The targets' share is the weight of mixup, or the area that cutmix really keeps.
    """
    apply_key, switch_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 5)
    weights, share = jnp.ones((height, width), jnp.float32), jnp.ones((), jnp.float32)
    use_cutmix: bool | jax.Array = True
    if config.mixup_alpha:
        share = jax.random.beta(mixup_key, config.mixup_alpha, config.mixup_alpha, dtype=jnp.float32)
        weights = jnp.full((height, width), share)
        use_cutmix = jax.random.bernoulli(switch_key, config.switch_probability)
    if config.cutmix_alpha:
        kept = jax.random.beta(cutmix_key, config.cutmix_alpha, config.cutmix_alpha, dtype=jnp.float32)
        center = jax.random.randint(box_key, (2,), 0, jnp.array([height, width], jnp.int32), jnp.int32)
        outside = cutmix_weights(height, width, kept, center)
        weights = jnp.where(use_cutmix, outside, weights)
        share = jnp.where(use_cutmix, outside.mean(), share)
    mixed = jax.random.bernoulli(apply_key, config.probability)
    return jnp.where(mixed, weights, 1.0), jnp.where(mixed, share, 1.0)


def cutmix_weights(height: int, width: int, kept: jax.Array, center: jax.Array) -> jax.Array:
    """Returns float32 [H, W], 0 in a box of the images' aspect ratio and 1 outside.

    Args:
        height: Of the images.
        width: Of the images.
        kept: float32 [], the area outside a box within the image, as a fraction of the image's area.
        center: int [2], row and column of the box's center; the part beyond the edges is cut off.
    """
    side = jnp.sqrt(1.0 - kept)
    inside = []
    for length, middle in zip((height, width), center, strict=True):
        box = jnp.int32(length * side)
        position = jnp.arange(length, dtype=jnp.int32)
        inside.append((position >= middle - box // 2) & (position < middle + (box + 1) // 2))
    return 1.0 - (inside[0][:, None] & inside[1][None]).astype(jnp.float32)


def blend(
    images: jax.Array, targets: jax.Array, weights: jax.Array, share: jax.Array, repeats: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Weighs images [B, H, W, C] by [H, W] and targets [B, classes] by [], against those that are `following`."""
    pixel_weights, share = weights[None, :, :, None].astype(images.dtype), share.astype(targets.dtype)
    images = pixel_weights * images + (1 - pixel_weights) * following(images, repeats)
    return images, share * targets + (1 - share) * following(targets, repeats)


def following(x: jax.Array, repeats: int = 1) -> jax.Array:
    """Returns of each example of a batch, x [B, ...], the one `repeats` places on; after the last the first.

    timm takes the batch in reversed order. In both, an image is mixed with any other of its batch with the same
    probability, if the order of the batch is random. But reversed, all images of a device come from another one, and
    here only `repeats` of them.

    Args:
        x: of each example.
        repeats: the views of an example that follow each other. None is mixed with another if each process has twice as
            many examples of the batch.
    """
    return jnp.roll(x, -repeats, axis=0)


def random_erase(key: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Replaces a random rectangle by standard normal noise in images that are drawn with `probability`.

    timm.data.RandomErasing in mode "pixel" (Zhong et al. 2017): noise of its own in every pixel and channel, 1/50 to
    1/3 of the area and an aspect ratio of 0.3 to 1/0.3. Of ten rectangles the first that is smaller than the image in
    both directions is taken; if none is, the image stays.

    Args:
        key: Decides everything that is drawn.
        images: float [B, H, W, C], normalized.
        probability: Static; 0 leaves out the computation.

    Returns:
        Images of the same shape and dtype.
    """
    if not probability:
        return images
    noise_key, key = jax.random.split(key)
    boxes = draw_boxes(key, images.shape[0], images.shape[1], images.shape[2], probability)
    noise = jax.random.normal(noise_key, images.shape, images.dtype)
    return jnp.where(box_mask(boxes, images.shape[1], images.shape[2])[..., None], noise, images)


def draw_boxes(key: jax.Array, count: int, height: int, width: int, probability: float) -> jax.Array:
    """Draws the rectangles to erase: int32 [count, 4] of top, left, height, width; 0, 0, 0, 0 for none."""
    apply_key, area_key, aspect_key, top_key, left_key = jax.random.split(key, 5)
    low, high = ERASE_AREA
    areas = height * width * jax.random.uniform(area_key, (count, ERASE_TRIES), jnp.float32, minval=low, maxval=high)
    low, high = map(math.log, ERASE_ASPECT)
    aspects = jnp.exp(jax.random.uniform(aspect_key, (count, ERASE_TRIES), jnp.float32, minval=low, maxval=high))
    heights = jnp.round(jnp.sqrt(areas * aspects)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(areas / aspects)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = (jnp.arange(count), fits.argmax(1))
    # Rectangles that do not fit are not used; the bound keeps their ranges from being empty.
    top = jax.random.randint(top_key, (count,), 0, jnp.maximum(height - heights[first], 0) + 1, jnp.int32)
    left = jax.random.randint(left_key, (count,), 0, jnp.maximum(width - widths[first], 0) + 1, jnp.int32)
    erased = fits.any(1) & jax.random.bernoulli(apply_key, probability, (count,))
    return jnp.where(erased[:, None], jnp.stack([top, left, heights[first], widths[first]], 1), 0)


def box_mask(boxes: jax.Array, height: int, width: int) -> jax.Array:
    """Boxes int [B, 4] of top, left, height, width -> bool [B, H, W], True inside."""
    top, left, box_height, box_width = (side[:, None] for side in boxes.T)
    rows, columns = (jnp.arange(side, dtype=boxes.dtype)[None] for side in (height, width))
    in_rows = (rows >= top) & (rows < top + box_height)
    in_columns = (columns >= left) & (columns < left + box_width)
    return in_rows[:, :, None] & in_columns[:, None, :]
