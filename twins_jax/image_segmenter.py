"""Images -> the class of each of their pixels."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from twins_jax.config import MIN_IMAGE_SIZE
from twins_jax.errors import InputError, is_number, require
from twins_jax.functional import BatchStats, Params, get_batch_stats, get_params, merge_model
from twins_jax.picture_model import nameless_graph, names_of, preprocessing_of
from twins_jax.preprocess import Picture, check_pictures, normalize, read
from twins_jax.segmentation.inference import check_windows, label_map, slide_logits
from twins_jax.segmentation.preprocess import SegmentationPreprocessing, resize
from twins_jax.segmentation.segmenter import TwinsSegmenter

MAX_SCALE = 16
"""Factor on the size to which an image is resized; upstream's largest is 1.75."""


def segment(
    model: TwinsSegmenter,
    pictures: Iterable[Picture],
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    crop_size: int | None = None,
    stride: int | None = None,
) -> list[np.ndarray]:
    """Finds the class of each pixel of images.

    Images are prepared as in the model's evaluation, by `model.preprocessing`, and turned as their EXIF data says. They
    are computed one by one. The model is compiled once for each size to which images are resized; an image's own size
    compiles nothing of the model.

    Args:
        model: a segmenter of RGB images.
        pictures: each as `preprocess` takes it; also uint8 [B, H, W, 3].
        scales: factors on the size to which an image is resized, each a pass through the model. The mean of the softmax
            over all passes decides (upstream tests with 0.5, 0.75, 1, 1.25, 1.5 and 1.75).
        flip: add a pass with the mirrored image at each scale.
        crop_size: side in pixels of windows that slide over the resized image, from 32; None: the whole image at once.
        stride: from one window to the next in pixels, at most `crop_size`; None: two thirds of `crop_size`.

    Returns:
        For each image its labels, positions among the model's outputs, [H, W] at the size of the image as it is shown.
        They are uint8 if the model has 255 classes or fewer, else int32.

    Raises:
        InputError: (a ValueError) an image cannot be read or is too narrow, an argument is not what it must be, or the
            model gives what is no number.
    """
    check_pictures(pictures)
    segmenter = ImageSegmenter(model, scales=scales, flip=flip, crop_size=crop_size, stride=stride)
    return [segmenter.predict(segmenter.prepare(picture)) for picture in pictures]


class Prepared(NamedTuple):
    """An image as a segmenter takes it.

    Attributes:
        inputs: uint8 [h, w, 3], one for each scale.
        size: height and width of the image itself.
    """

    inputs: list[np.ndarray]
    size: tuple[int, int]


class ImageSegmenter:
    """A segmenter with the steps before and after it: image -> pixels -> labels.

    Arguments and errors are those of `segment`.
    """

    def __init__(
        self,
        model: TwinsSegmenter,
        *,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        crop_size: int | None = None,
        stride: int | None = None,
    ) -> None:
        require("model", type(model), isinstance(model, TwinsSegmenter), "a TwinsSegmenter")
        are_scales = isinstance(scales, Sequence) and len(scales) > 0 and all(map(_is_scale, scales))
        require("scales", scales, are_scales, f"a list of positive numbers up to {MAX_SCALE}")
        require("flip", flip, isinstance(flip, bool), "True or False")
        require("stride", stride, stride is None or crop_size is not None, "None without crop_size")
        self._windows: tuple[int, int] | None = None
        if crop_size is not None:
            check_windows(crop_size, 1 if stride is None else stride)
            self._windows = int(crop_size), int(crop_size * 2 // 3 if stride is None else stride)
        self._preprocessing = preprocessing_of(model, SegmentationPreprocessing())
        self.class_names = names_of(model)
        self._scales, self._flip = tuple(scales), flip
        self._arrays = get_params(model), get_batch_stats(model)
        self._graphdef = nameless_graph(model, *self._arrays)

    def prepare(self, picture: Picture) -> Prepared:
        """Resizes an image to what the model sees of it."""
        image = read(picture)
        height, width = image.shape[:2]
        sizes = [self._preprocessing.size(height, width, scale) for scale in self._scales]
        for resized in sizes:
            allowed = f"{MIN_IMAGE_SIZE} pixels or more both ways when resized, here to {resized[1]} x {resized[0]}"
            require("picture", f"{width} x {height} pixels", min(resized) >= MIN_IMAGE_SIZE, allowed)
        return Prepared([resize(image, size) for size in sizes], (height, width))

    def predict(self, image: Prepared) -> np.ndarray:
        """Returns the labels of a prepared image, [H, W] at its own size."""
        logits, through = [], []
        for pixels in image.inputs:
            for is_flipped in (False, True)[: 1 + self._flip]:
                given = pixels[:, ::-1] if is_flipped else pixels
                found, is_finite = _logits(self._graphdef, *self._arrays, given[None], self._windows)
                if not is_finite:
                    raise InputError("the model's outputs are not finite: its weights may be damaged")
                logits.append(found[:, ::-1] if is_flipped else found)
                through.append((pixels.shape[0], pixels.shape[1]))
        return label_map(logits, through, image.size)


def _is_scale(value: object) -> bool:
    return is_number(value) and 0 < value <= MAX_SCALE  # type: ignore[operator]


# Keyed by the graph definition, which is the same for each call with a model: a jit of a new function would compile.
@functools.partial(jax.jit, static_argnames=("graphdef", "windows"))
def _logits(
    graphdef: nnx.GraphDef[Any],
    params: Params,
    batch_stats: BatchStats,
    images: jax.Array,
    windows: tuple[int, int] | None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the logits of one prepared image [1, H, W, 3], and True if all are finite.

    They are [H, W, classes] of windows, and [H // 4, W // 4, classes] of a whole image.
    """
    model: TwinsSegmenter = merge_model(graphdef, params, batch_stats)
    preprocessing = model.preprocessing or SegmentationPreprocessing()
    inputs = normalize(images, preprocessing.mean, preprocessing.std)
    if windows:
        logits = slide_logits(model, inputs, crop_size=windows[0], stride=windows[1])[0]
    else:
        logits = model.logits4(inputs)[0]
    return logits, jnp.isfinite(logits).all()
