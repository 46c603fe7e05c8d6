"""Small models of a variant of their own, for the tests of saving: a file of 1 MB, and few blocks to trace."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from flax import nnx

import twins_jax
from tests.support.models import SVT, classifier

NAME = "mini"
"""Of the variant, which the fixture `mini_variant` adds."""

CLASS_NAMES = ("Käse", "a\nb", "\udce9t\udce9", "", "`]('\"", "same", "same", "7" * 500, "猫", "\x1b[31m")
PREPROCESSING = twins_jax.Preprocessing(96, 0.9, (0.5, 0.4, 0.3), (0.25, 0.3, 0.1 + 0.2), "bilinear")
FILES = ["config.json", "model.safetensors"]


@functools.cache
def parts(num_classes: int, **options: Any) -> tuple[nnx.GraphDef[Any], twins_jax.Params]:
    model = classifier(dataclasses.replace(SVT, **options), num_classes)
    return nnx.graphdef(model), twins_jax.get_params(model)


def mini(num_classes: int = 10, **options: Any) -> twins_jax.TwinsClassifier:
    """A classifier with random values in every parameter."""
    model: twins_jax.TwinsClassifier = twins_jax.merge_model(*parts(num_classes, **options))
    return model


def described() -> twins_jax.TwinsClassifier:
    """One with all that a folder says beside the weights."""
    model = mini(window_padding="mask")
    model.class_names, model.preprocessing = CLASS_NAMES, PREPROCESSING
    return model


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
