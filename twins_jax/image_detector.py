"""Images -> the objects in them: their classes, scores, boxes and masks."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from twins_jax.detection.detector import Detections, TwinsDetector
from twins_jax.detection.masks import paste_masks
from twins_jax.detection.preprocess import DetectionPreprocessing
from twins_jax.errors import InputError, is_number, require
from twins_jax.functional import Params, get_params, merge_model
from twins_jax.picture_model import nameless_graph, names_of, preprocessing_of
from twins_jax.preprocess import Picture, check_pictures, normalize, read, zero_padding
from twins_jax.segmentation.preprocess import resize


@dataclasses.dataclass(frozen=True, eq=False)
class Detection:
    """An object in an image.

    Attributes:
        label: position of its class among the model's outputs.
        name: of the class.
        score: from 0 to 1: the sigmoid of RetinaNet's logit, the softmax of Mask R-CNN's.
        box: x1, y1, x2 and y2 in pixels, within the image.
        image_size: height and width of the image.
        mask_probabilities: float32 [28, 28], that the parts of the box show the object; None for RetinaNet.
    """

    label: int
    name: str
    score: float
    box: tuple[float, float, float, float]
    image_size: tuple[int, int]
    mask_probabilities: np.ndarray | None

    @property
    def mask(self) -> np.ndarray | None:
        """The object's pixels, bool [H, W] of the image's size; None for RetinaNet.

        Each access computes them: those of all objects of a large photograph would fill the memory.
        """
        if self.mask_probabilities is None:
            return None
        return masks_at([self], self.image_size)[0]


def detect(model: TwinsDetector, pictures: Iterable[Picture], *, score_threshold: float = 0.3) -> list[list[Detection]]:
    """Finds the objects in images.

    Images are prepared as in the model's evaluation, by `model.preprocessing`, and turned as their EXIF data says. They
    are computed one by one, padded to one of a few sizes, for each of which the model is compiled once.

    Args:
        model: a detector of RGB images. Classes without names are called "class 0", "class 1" and on.
        pictures: each as `preprocess` takes it; also uint8 [B, H, W, 3].
        score_threshold: objects of lower scores are left out; those that the model itself leaves out have at most 0.05.

    Returns:
        For each image its objects, of the highest score first, at most 100.

    Raises:
        InputError: (a ValueError) an image cannot be read, an argument is not what it must be, or the model gives what
            is no number.
    """
    check_pictures(pictures)
    detector = ImageDetector(model, score_threshold=score_threshold)
    return [detector.predict(detector.prepare(picture)) for picture in pictures]


class Prepared(NamedTuple):
    """An image as a detector takes it.

    Attributes:
        pixels: the resized image, uint8 [h, w, 3], without padding.
        size: height and width of the image itself.
    """

    pixels: np.ndarray
    size: tuple[int, int]


class ImageDetector:
    """A detector with the steps before and after it: image -> pixels -> objects.

    Arguments and errors are those of `detect`.
    """

    def __init__(self, model: TwinsDetector, *, score_threshold: float = 0.3) -> None:
        require("model", type(model), isinstance(model, TwinsDetector), "a TwinsRetinaNet or a TwinsMaskRCNN")
        is_threshold = is_number(score_threshold) and 0 <= score_threshold <= 1
        require("score_threshold", score_threshold, is_threshold, "a number from 0 to 1")
        self._preprocessing = preprocessing_of(model, DetectionPreprocessing())
        self.class_names = names_of(model)
        self.score_threshold = float(score_threshold)  # compared in float32, as scores are
        self._params = get_params(model)
        self._graphdef = nameless_graph(model, self._params)

    def prepare(self, picture: Picture) -> Prepared:
        """Resizes an image to what the model sees of it."""
        image = read(picture)
        size = image.shape[0], image.shape[1]
        return Prepared(resize(image, self._preprocessing.size(*size)), size)

    def predict(self, image: Prepared) -> list[Detection]:
        """Returns the objects in a prepared image, of the highest score first."""
        size = image.pixels.shape[0], image.pixels.shape[1]
        padded = np.zeros((1, *self._preprocessing.padded_shape(*size), 3), np.uint8)
        padded[0, : size[0], : size[1]] = image.pixels
        found, is_finite = _detections(self._graphdef, self._params, padded, np.array([size], np.int32))
        if not is_finite:
            raise InputError("the model's outputs are not finite: its weights may be damaged")
        boxes, scores, labels, valid = (np.asarray(part[0]) for part in found[:4])
        masks = None if found.masks is None else np.asarray(found.masks[0])
        boxes = rescaled(boxes, size, image.size)

        def detection(i: int) -> Detection:
            x1, y1, x2, y2 = boxes[i].tolist()
            return Detection(
                label=int(labels[i]),
                name=self.class_names[labels[i]],
                score=float(scores[i]),
                box=(x1, y1, x2, y2),
                image_size=image.size,
                mask_probabilities=None if masks is None else masks[i].copy(),  # no view, which would keep the others
            )

        return [detection(i) for i in np.flatnonzero(valid & (scores >= self.score_threshold)).tolist()]


def rescaled(boxes: np.ndarray, size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """Returns the boxes, float32 [N, 4], of a resized image.

    Args:
        boxes: float32 [N, 4], in pixels of the image.
        size: height and width of the image.
        new_size: those of the resized one, within which the boxes stay.
    """
    (height, width), (new_height, new_width) = size, new_size
    scale = np.array([width / new_width, height / new_height] * 2, np.float32)  # divides, as mmdet's scale_factor
    return np.clip(boxes / scale, 0, np.array([new_width, new_height] * 2, np.float32))


def masks_at(detections: Sequence[Detection], size: tuple[int, int]) -> np.ndarray:
    """Computes the masks, bool [N, *size], of objects of one image that is resized to a height and a width."""
    boxes = np.array([detection.box for detection in detections], np.float32)
    probabilities = np.array([detection.mask_probabilities for detection in detections], np.float32)
    return paste_masks(probabilities, rescaled(boxes, detections[0].image_size, size), *size)


# Keyed by the graph definition, which is the same for each call with a model: a jit of a new function would compile.
@functools.partial(jax.jit, static_argnames="graphdef")
def _detections(
    graphdef: nnx.GraphDef[Any], params: Params, images: jax.Array, sizes: jax.Array
) -> tuple[Detections, jax.Array]:
    """Returns the objects in padded images, uint8 [B, H, W, 3], and True if the model's features are finite.

    Padding is zero once it is normalized, as in mmdet.
    """
    model: TwinsDetector = merge_model(graphdef, params)
    preprocessing = model.preprocessing or DetectionPreprocessing()
    inputs = normalize(images, preprocessing.mean, preprocessing.std)
    features = model.features(zero_padding(inputs, sizes))
    are_finite = jnp.stack([jnp.isfinite(level).all() for level in features])
    return model.detections(features, sizes), are_finite.all()
