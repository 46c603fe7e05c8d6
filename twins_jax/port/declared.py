"""Class names, preprocessing and `window_padding`, which changes the computed function: they travel beside weights.

One JSON object holds it: timm's `config.json` with more keys: "window_padding"; "problem_type", which is Hugging Face's
transformers' and stands for a classifier of several labels; "head" and "preprocessing" of a segmenter or a detector. It
is the metadata "twins_jax" of a .safetensors file, and `config.json` in an Orbax folder. A training run's folder holds
the same in files of its own.
"""

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from twins_jax.config import WindowPadding
from twins_jax.detection.detector import DetectionHead
from twins_jax.detection.preprocess import DetectionPreprocessing
from twins_jax.errors import InputError, require
from twins_jax.files import parse_object, read_object
from twins_jax.port.convert import NOTHING_DECLARED, AnyPreprocessing, Declared
from twins_jax.port.infer import Inferred
from twins_jax.preprocess import Preprocessing
from twins_jax.segmentation.preprocess import SegmentationPreprocessing

MULTI_LABEL = "multi_label_classification"
CONFIG_FILE = "config.json"
DATASET_FILE = "dataset.json"

_logger = logging.getLogger(__name__)


def read_folder(folder: str) -> Declared:
    """Reads what is declared of an Orbax folder: in it, or by the training run whose checkpoint it is an item of.

    Raises:
        InputError: a file is not readable, or holds what it must not.
    """
    path = os.path.join(folder, CONFIG_FILE)
    if os.path.exists(path):
        return from_json(read_object(path), path)
    checkpoints = Path(os.path.abspath(folder)).parent.parent  # RUN/checkpoints/STEP/params
    return _read_run(str(checkpoints.parent)) if checkpoints.name == "checkpoints" else NOTHING_DECLARED


def from_text(text: str | None, place: str) -> Declared:
    """Reads the metadata of a file, None for one without any; `place` is named in errors."""
    if text is None:
        return NOTHING_DECLARED
    return from_json(parse_object(text, place), place)


def from_json(config: Mapping[str, Any], place: str) -> Declared:
    """Reads an object in timm's form; of older files "pretrained_cfg" is the object itself.

    Args:
        config: the object; keys of no interest are passed over.
        place: the file, for errors.

    Raises:
        InputError: a value cannot be what it stands for.
    """
    pretrained = config.get("pretrained_cfg", config)
    if not isinstance(pretrained, dict):
        raise InputError(f"{place}: pretrained_cfg={pretrained!r}: must be an object")
    names = next((part[key] for part in (config, pretrained) for key in ("label_names", "labels") if key in part), None)
    images: AnyPreprocessing | None = _preprocessing(pretrained, place)
    head = config.get("head")
    if head is not None and (own := config.get("preprocessing")) is not None:
        images = _of_dense_task(head, own, f"{place}: preprocessing")
    return Declared(
        name=config.get("architecture"),
        num_classes=config.get("num_classes"),
        class_names=_class_names(names, f"{place}: label_names"),
        preprocessing=images,
        window_padding=_window_padding(config.get("window_padding"), f"{place}: window_padding"),
        multi_label=config.get("problem_type") == MULTI_LABEL or None,
        head=head,
    )


def to_text(declared: Declared, model: Inferred) -> str | None:
    """The inverse of `from_text`, for weights of this model; None if the weights alone say everything."""
    config = to_json(declared, model)
    return json.dumps(config) if config.keys() - {"architecture", "head", "num_classes"} else None


def to_json(declared: Declared, model: Inferred) -> dict[str, Any]:
    """The inverse of `from_json`, for weights of this model."""
    config: dict[str, Any] = {"architecture": model.name, "num_classes": model.num_classes}
    if model.head is not None:
        config["head"] = model.head
    if declared.class_names is not None and model.num_classes:  # they go with the head
        config["label_names"] = list(declared.class_names)
    if declared.multi_label and model.num_classes:
        config["problem_type"] = MULTI_LABEL
    if declared.window_padding is not None:
        config["window_padding"] = declared.window_padding
    images = declared.preprocessing
    if isinstance(images, Preprocessing):  # Python's own numbers: JSON takes none of NumPy's
        side = int(images.image_size)
        config["pretrained_cfg"] = {
            "input_size": [model.in_channels, side, side],
            "crop_pct": float(images.crop),
            "mean": list(images.mean),
            "std": list(images.std),
            "interpolation": images.interpolation,
        }
    elif images is not None:
        values = dataclasses.asdict(images).items()
        config["preprocessing"] = {key: list(x) if isinstance(x, tuple) else int(x) for key, x in values}
    return config


def _read_run(run: str) -> Declared:
    """Reads the records of a training run, as `train.loop` writes them; older runs have no `DATASET_FILE`."""
    declared = NOTHING_DECLARED
    path = os.path.join(run, CONFIG_FILE)
    if os.path.exists(path):
        config = read_object(path)
        model, data = (config.get(key, {}) for key in ("model", "data"))
        for key, part in (("model", model), ("data", data)):
            if not isinstance(part, dict):
                raise InputError(f"{path}: {key}={part!r}: must be an object")
        declared = Declared(
            name=model.get("name"),
            preprocessing=_of_run(path, config.get("head"), data),
            window_padding=_window_padding(model.get("window_padding"), f"{path}: model.window_padding"),
            multi_label=data.get("multi_label") is True or None,
            head=config.get("head"),
        )
    path = os.path.join(run, DATASET_FILE)
    if os.path.exists(path):
        names = _class_names(read_object(path).get("class_names"), f"{path}: class_names")
        declared = declared._replace(class_names=names)
    return declared


def _of_run(path: str, head: Any, data: Mapping[str, Any]) -> AnyPreprocessing | None:
    """Returns the preprocessing of a run's evaluations, of the tasks that are known."""
    if {"image_size", "eval_crop"} <= data.keys():
        return _checked(path, image_size=data["image_size"], crop=data["eval_crop"])
    if {"shorter", "longer"} <= data.keys():
        return _of_dense_task(head, {key: data[key] for key in ("shorter", "longer")}, f"{path}: data")
    return None


def _of_dense_task(head: Any, values: Any, place: str) -> SegmentationPreprocessing | DetectionPreprocessing:
    """Checks the preprocessing of a model with a head; of a head that is not known, it is an error later."""
    of_task: type[SegmentationPreprocessing] | type[DetectionPreprocessing] = SegmentationPreprocessing
    if head in get_args(DetectionHead):
        of_task = DetectionPreprocessing
    fields = [field.name for field in dataclasses.fields(of_task)]
    is_known = isinstance(values, dict) and values.keys() <= set(fields)
    require(place, values, is_known, f"an object of {', '.join(fields)}")
    try:
        return of_task(**values)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def _class_names(value: Any, field: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    is_names = isinstance(value, list) and all(isinstance(name, str) for name in value)
    require(field, value, is_names, "a list of strings")
    return tuple(value)


def _window_padding(value: Any, field: str) -> WindowPadding | None:
    allowed = get_args(WindowPadding)
    require(field, value, value is None or value in allowed, f"one of {', '.join(allowed)}")
    return value


def _preprocessing(config: Mapping[str, Any], place: str) -> Preprocessing | None:
    size = config.get("input_size")
    if size is None:
        return None
    require(f"{place}: input_size", size, isinstance(size, list) and len(size) == 3, "channels, height and width")
    mode = config.get("crop_mode") or "center"
    ours = {"crop": "crop_pct", "mean": "mean", "std": "std", "interpolation": "interpolation"}
    values = {field: config[key] for field, key in ours.items() if config.get(key) is not None}
    if size[1] != size[2] or mode != "center" or values.get("interpolation") == "random":
        _logger.warning("%s: its preprocessing is left out: twins_jax has only square center crops", place)
        return None
    return _checked(place, image_size=size[1], **values)


def _checked(place: str, **values: Any) -> Preprocessing:
    try:
        return Preprocessing(**values)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
