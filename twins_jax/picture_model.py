"""The steps from a model to one that answers about pictures, which classifiers, segmenters and detectors share."""

from typing import Any

from flax import nnx

from twins_jax.base import AnsweringModel, Preprocessing
from twins_jax.errors import require
from twins_jax.functional import merge_model


def preprocessing_of(model: AnsweringModel[Preprocessing], default: Preprocessing) -> Preprocessing:
    """Returns the model's preprocessing, or the default where it has none.

    Raises:
        InputError: (a ValueError) the model or its preprocessing is not of RGB images.
    """
    channels = model.config.in_channels
    require("in_channels", channels, channels == 3, "3: images are read as RGB")
    preprocessing = model.preprocessing or default
    mean = preprocessing.mean
    require("preprocessing.mean", mean, len(mean) == 3, "of 3 channels: images are read as RGB")
    return preprocessing


def names_of(model: AnsweringModel[Any]) -> tuple[str, ...]:
    """Returns the names of the model's classes, or "class 0", "class 1" and on where it has none."""
    return model.class_names or tuple(f"class {label}" for label in range(model.num_classes))


def nameless_graph(model: AnsweringModel[Any], *arrays: Any) -> Any:
    """Returns the graph of the model without the names of its classes: other names are no other program.

    Args:
        model: of which nothing is changed.
        arrays: its parameters and, if it has them, its running statistics, as `merge_model` takes them.
    """
    nameless = merge_model(nnx.graphdef(model), *arrays)
    nameless.class_names = None
    return nnx.graphdef(nameless)
