"""Images -> the classes that a model finds in them, by name."""

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from twins_jax import imagenet, ops
from twins_jax.classifier import TwinsClassifier
from twins_jax.errors import MAX_INT, InputError, is_integer, require
from twins_jax.functional import Params, get_params, merge_model
from twins_jax.picture_model import nameless_graph, names_of, preprocessing_of
from twins_jax.preprocess import DEFAULT, Picture, center_crop, check_pictures, normalize, read


class Answer(NamedTuple):
    """A class that an image may show.

    Attributes:
        label: position among the model's outputs.
        name: of the class.
        probability: softmax of the logits; of a model with `multi_label`, the sigmoid of its logit.
    """

    label: int
    name: str
    probability: float


def classify(
    model: TwinsClassifier, pictures: Iterable[Picture], *, topk: int = 5, batch_size: int = 16
) -> list[list[Answer]]:
    """Names the most probable classes of images.

    Images are prepared as in the model's evaluation, by `model.preprocessing`, and turned as their EXIF data says. The
    model is compiled once for each size of a batch: `batch_size`, and the powers of two below it, up to which fewer
    images are padded.

    Args:
        model: a classifier of RGB images. Its `class_names` name the classes; ids of ImageNet's synsets are spelled
            out. A model without them that has 1000 outputs is taken for one of ImageNet-1K, and the classes of others
            are "class 0", "class 1" and on.
        pictures: each as `preprocess` takes it; also uint8 [B, H, W, 3].
        topk: classes for each image; all, where the model has fewer.
        batch_size: images that are computed at a time.

    Returns:
        For each image its answers, the most probable first.

    Raises:
        InputError: (a ValueError) an image cannot be read, an argument is not what it must be, or the model gives what
            is no number.
    """
    check_pictures(pictures)
    classifier = ImageClassifier(model, topk)
    require("batch_size", batch_size, is_integer(batch_size, 1), f"an integer from 1 to {MAX_INT}")
    images = map(classifier.prepare, pictures)
    answers: list[list[Answer]] = []
    while batch := list(itertools.islice(images, batch_size)):
        answers += classifier.predict(batch, padded_size(len(batch), batch_size))
    return answers


def padded_size(count: int, most: int) -> int:
    """Returns the size of a batch for some images: a power of two, or the most that a batch may hold."""
    return min(1 << (count - 1).bit_length(), most)


class ImageClassifier:
    """A classifier with the steps before and after it: image -> pixels -> answers.

    Args:
        model: as in `classify`.
        topk: as in `classify`.

    Raises:
        InputError: as `classify`.
    """

    def __init__(self, model: TwinsClassifier, topk: int) -> None:
        require("model", type(model), isinstance(model, TwinsClassifier), "a TwinsClassifier, as from_pretrained gives")
        require("topk", topk, is_integer(topk, 1), f"an integer from 1 to {MAX_INT}")
        classes = model.num_classes
        require("num_classes", classes, classes > 0, "from 1: a model without a head names no classes")
        self._preprocessing = preprocessing_of(model, DEFAULT)
        self._class_names = known_class_names(model) or names_of(model)
        self._topk = topk
        self._params = get_params(model)
        self._graphdef = nameless_graph(model, self._params)

    def prepare(self, picture: Picture) -> np.ndarray:
        """Returns the pixels that the model sees of an image, uint8 [S, S, 3]."""
        return center_crop(read(picture), self._preprocessing)

    def predict(self, images: Sequence[np.ndarray], size: int) -> list[list[Answer]]:
        """Classifies prepared images, in a batch that is padded to `size`."""
        padding = [np.zeros_like(images[0])] * (size - len(images))
        probabilities = np.asarray(_probabilities(self._graphdef, self._params, np.stack([*images, *padding])))
        if not np.isfinite(probabilities[: len(images)]).all():
            raise InputError("the model's outputs are not finite: its weights may be damaged")
        return [self._answers(row) for row in probabilities[: len(images)]]

    def _answers(self, probabilities: np.ndarray) -> list[Answer]:
        top = np.argsort(-probabilities, kind="stable")[: self._topk]
        return [Answer(int(label), self._class_names[label], float(probabilities[label])) for label in top]


def known_class_names(model: TwinsClassifier) -> tuple[str, ...] | None:
    """Returns the names of a model's outputs: its own, or ImageNet-1K's for 1000 outputs without names, or None."""
    if model.class_names is None:
        return imagenet.class_names() if model.num_classes == 1000 else None
    return imagenet.spelled_out(model.class_names)


# Keyed by the graph definition, which is the same for each call with a model: a jit of a new function would compile.
@functools.partial(jax.jit, static_argnames="graphdef")
def _probabilities(graphdef: nnx.GraphDef[Any], params: Params, images: jax.Array) -> jax.Array:
    """Returns the probabilities, float32 [B, classes], of prepared images, uint8 [B, S, S, 3]."""
    model: TwinsClassifier = merge_model(graphdef, params)
    preprocessing = model.preprocessing or DEFAULT
    logits = model(normalize(images, preprocessing.mean, preprocessing.std))
    to_probabilities = jax.nn.sigmoid if model.multi_label else jax.nn.softmax
    return to_probabilities(logits.astype(ops.at_least_float32(logits.dtype)))
