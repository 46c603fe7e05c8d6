"""The function that an exported file computes: a model with its weights, for images of one size."""

import dataclasses
from typing import Any, TypeAlias, Unpack

import jax
import numpy as np
from flax import nnx

from twins_jax import ops
from twins_jax.abstract import abstract_model
from twins_jax.backbone import TwinsBackbone
from twins_jax.classifier import TwinsClassifier
from twins_jax.config import MIN_IMAGE_SIZE, RuntimeOptions
from twins_jax.errors import InputError, is_integer, require
from twins_jax.functional import get_params, merge_model
from twins_jax.model import Model, check_model
from twins_jax.preprocess import DEFAULT, Preprocessing, normalize

Exportable: TypeAlias = TwinsClassifier | TwinsBackbone
"""A model that can be exported."""

BATCH = "batch"
"""The name of a batch axis of any length."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of images alone.

    Attributes:
        model: holds the weights.
        shape: of the images, [B, H, W, C]; B is `BATCH` where any batch is taken.
        normalizes: True for images of uint8 RGB pixels, which the program normalizes; False for float32 that are
            normalized already.
        preprocessing: of the model, or that of the published weights for images of 3 channels without any; None where
            nothing is known.
    """

    model: Exportable
    shape: tuple[int | str, ...]
    normalizes: bool
    preprocessing: Preprocessing | None

    @property
    def dtype(self) -> np.dtype:
        """Of the images."""
        return np.dtype(np.uint8 if self.normalizes else np.float32)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs, in their order."""
        if isinstance(self.model, TwinsBackbone):
            return ("c2", "c3", "c4", "c5")
        return ("logits" if self.model.num_classes else "features",)

    def sized(self, batch: int) -> tuple[int, ...]:
        """The shape of a batch of images."""
        return (batch, *(int(size) for size in self.shape[1:]))

    def normalized(self, images: jax.Array) -> jax.Array:
        """Returns the images as the model takes them."""
        if not self.normalizes:
            return images
        assert self.preprocessing
        return normalize(images, self.preprocessing.mean, self.preprocessing.std)

    def function(self) -> Any:
        """Returns the function: images -> an array, or the tuple of a backbone's maps.

        The weights are constants in it. They are arrays of NumPy: their casts, as to bfloat16, happen when the function
        is traced, and take no room in a file. Attention is the one formulation that lowers for every platform.
        """
        portable = with_options(self.model, attention_implementation=ops.PORTABLE, remat=False)
        graphdef, params = nnx.graphdef(portable), jax.device_get(get_params(portable))

        def twins(images: jax.Array) -> Any:
            return merge_model(graphdef, params)(self.normalized(images))

        return twins

    def outputs(self) -> list[dict[str, Any]]:
        """Name, shape and dtype of every output."""
        images = jax.ShapeDtypeStruct(self.sized(1), self.dtype)
        shapes = jax.tree.leaves(jax.eval_shape(self.function(), images))
        return [
            {"name": name, "shape": [self.shape[0], *output.shape[1:]], "dtype": str(output.dtype)}
            for name, output in zip(self.output_names, shapes, strict=True)
        ]


def make_program(
    model: Model, image_size: int | tuple[int, int] | None, batch_size: int | None, normalizes: bool
) -> Program:
    """Checks the arguments of `export_model`, which have the same names, and fills in what they leave open.

    Raises:
        InputError: (a ValueError) naming the argument, its value and what it must be.
    """
    check_model(model)
    if not isinstance(model, Exportable):
        raise InputError(f"model: must be a classifier or a backbone; a {type(model).__name__} cannot be exported yet")
    declared = model.preprocessing if isinstance(model, TwinsClassifier) else None
    channels = model.config.in_channels
    preprocessing = declared or (DEFAULT if channels == 3 else None)
    size = (preprocessing or DEFAULT).image_size if image_size is None else image_size
    sides = (size, size) if not isinstance(size, tuple | list) else tuple(size)
    are_sides = len(sides) == 2 and all(is_integer(side, MIN_IMAGE_SIZE) for side in sides)
    require("image_size", image_size, are_sides, f"None, an integer from {MIN_IMAGE_SIZE}, or two of them: H and W")
    is_batch = batch_size is None or is_integer(batch_size, 1)
    require("batch_size", batch_size, is_batch, "None, for any, or an integer from 1")
    require("normalize", normalizes, isinstance(normalizes, bool), "True or False")
    is_rgb = channels == 3 and preprocessing is not None and len(preprocessing.mean) == 3
    allowed = f"False where pixels are not RGB: the model has in_channels={channels}, and preprocessing={preprocessing}"
    require("normalize", normalizes, is_rgb or not normalizes, allowed)
    shape = (BATCH if batch_size is None else int(batch_size), *map(int, sides), channels)
    return Program(model, shape, normalizes, preprocessing)


def with_options(model: Exportable, **options: Unpack[RuntimeOptions]) -> Exportable:
    """Returns a model that shares the parameters, and has some options replaced."""
    config = dataclasses.replace(model.config, **options)

    def make(rngs: nnx.Rngs) -> Exportable:
        if isinstance(model, TwinsClassifier):
            return TwinsClassifier(config, model.num_classes, rngs=rngs)
        return TwinsBackbone(config, rngs=rngs)

    changed: Exportable = merge_model(nnx.graphdef(abstract_model(make)), get_params(model))
    return changed
