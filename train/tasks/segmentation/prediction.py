"""The classes that a segmenter predicts for images of several sizes, each at the size of its label."""

from typing import Any

import jax
import jax.numpy as jnp

from twins_jax import ops
from twins_jax.preprocess import normalize, zero_padding
from twins_jax.segmentation.inference import slide_logits

from ...task import Batch
from .config import SegmentationDataConfig
from .rows import rows_at_a_time


def image_name(number: int) -> str:
    """Returns the name in a batch of an image at one of `eval_scales`."""
    return f"image_{number}" if number else "image"


def size_name(number: int) -> str:
    """Returns the name of its size, int32 [B, 2], height and width before padding."""
    return f"input_size_{number}" if number else "input_size"


def predict(model: Any, batch: Batch, data: SegmentationDataConfig) -> jax.Array:
    """Classifies every pixel, as mmseg tests: logits at the input's size, resized to the label's, then the largest.

    Of several scales, and of mirrored images, the probabilities at the label's size are averaged.

    Args:
        model: a `TwinsSegmenter`.
        batch: {"image": uint8 [B, h, w, 3], "input_size": int32 [B, 2], "label": uint8 [B, H, W],
            "label_size": int32 [B, 2]}, and "image_1", "input_size_1" of a second scale, and onward. Images and labels
            are padded at right and bottom to the arrays' size.
        data: the settings of evaluation.

    Returns:
        uint8 [B, H, W].
    """
    sizes = jnp.maximum(batch["label_size"], 1)  # a row of padding has none
    logits = [
        (part, size) for number in range(len(data.eval_scales)) for part, size in _logits(model, batch, number, data)
    ]
    rows, height, width = batch["label"].shape
    step = rows_at_a_time(rows, height, width, model.num_classes)

    def classes(first: jax.Array) -> jax.Array:
        resized = [_resized(part, size, sizes, (step, width), first) for part, size in logits]
        scores = resized[0] if len(resized) == 1 else sum(map(jax.nn.softmax, resized))
        return jnp.argmax(scores, axis=-1).astype(jnp.uint8)

    parts = jax.lax.map(classes, jnp.arange(0, height, step, dtype=jnp.int32))
    return parts.swapaxes(0, 1).reshape(rows, -1, width)[:, :height]


def _logits(model: Any, batch: Batch, number: int, data: SegmentationDataConfig) -> list[tuple[jax.Array, jax.Array]]:
    """Computes the logits at the input's size, float32 [B, h, w, K], each with the sizes before padding."""
    pixels, size = batch[image_name(number)], jnp.maximum(batch[size_name(number)], 1)
    images = zero_padding(normalize(pixels), size)
    found = [_network(model, images, data)]
    if data.eval_flip:
        columns = jnp.arange(images.shape[2], dtype=jnp.int32)
        width = size[:, 1:]
        mirrored = jnp.where(columns < width, width - 1 - columns, columns)[:, None, :, None]
        flipped = _network(model, jnp.take_along_axis(images, mirrored, axis=2), data)
        found.append(jnp.take_along_axis(flipped, mirrored, axis=2))
    return [(logits, size) for logits in found]


def _network(model: Any, images: jax.Array, data: SegmentationDataConfig) -> jax.Array:
    if data.eval_mode == "slide":
        logits = slide_logits(model, images, crop_size=data.crop_size, stride=data.eval_stride)
        return logits.astype(jnp.float32)
    logits = model.logits4(images).astype(jnp.float32)
    return ops.resize_bilinear(logits, (images.shape[1], images.shape[2]))


def _resized(
    logits: jax.Array, source: jax.Array, target: jax.Array, size: tuple[int, int], first_row: jax.Array
) -> jax.Array:
    """Resizes each image's logits to its own size; returns `size` of the result, from a row on."""

    def of_image(logits: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
        lengths = {"source": (source[0], source[1]), "target": (target[0], target[1])}
        return ops.resize_bilinear(logits[None], size, **lengths, first_row=first_row)[0]

    return jax.vmap(of_image)(logits, source, target)
