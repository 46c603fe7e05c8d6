"""Saves a model as a folder of `model.safetensors` and `config.json`, in the names and the form of timm's."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from twins_jax.backbone import TwinsBackbone
from twins_jax.classifier import TwinsClassifier
from twins_jax.errors import InputError, is_integer, require, shown_list
from twins_jax.files import staged
from twins_jax.fit import array_misfits, by_name
from twins_jax.functional import get_batch_stats, get_params
from twins_jax.model import Model, check_model
from twins_jax.paths import target_path
from twins_jax.port.convert import Declared, Tensors, to_layout
from twins_jax.port.declared import CONFIG_FILE, to_json, to_text
from twins_jax.port.hub import WEIGHT_FILES
from twins_jax.port.infer import Inferred, of_model
from twins_jax.port.safetensors_io import write_safetensors
from twins_jax.port.write import SUFFIXES

WEIGHTS_FILE = WEIGHT_FILES[0]
CARD_FILE = "README.md"
"""A model card, which belongs to its reader once it is written."""

DTYPES = ("float16", "bfloat16", "float32", "float64")
"""The dtypes that safetensors reads again for NumPy."""


def save_model(model: Model, folder: str | os.PathLike[str], *, overwrite: bool = False) -> tuple[Inferred, Declared]:
    """Writes a model's folder, complete or not at all.

    Args:
        model: of a variant.
        folder: is made, its parents included. One that is empty is taken; one of a saved model is replaced with
            `overwrite`, but for its `CARD_FILE`.
        overwrite: see `folder`.

    Returns:
        The model as its weights and its configuration describe it.

    Raises:
        InputError: the model cannot be read back as it is, or the folder cannot be written.
    """
    require("overwrite", overwrite, isinstance(overwrite, bool), "True or False")
    check_model(model)
    target = target_path("folder", folder, "folder")
    is_file = target.name.lower().endswith(SUFFIXES)
    require("folder", str(target), not is_file, "the path of a folder; port_weights.py makes files of it")
    _check_folder(target, overwrite)
    inferred = of_model(model)
    declared = _declared(model, inferred)
    tensors = to_layout(_host_params(model, inferred), inferred.kind.theirs)
    try:
        Path(os.path.realpath(target)).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{target}: could not be written: {error.filename}: {error.strerror}") from error
    with staged(target) as aside:
        os.mkdir(aside)
        if (target / CARD_FILE).exists():
            shutil.copyfile(target / CARD_FILE, os.path.join(aside, CARD_FILE))
        text = json.dumps(_config(declared, inferred), indent=2)
        Path(aside, CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        about = to_text(declared, inferred)  # the file of weights tells all, too, where it stands alone
        write_safetensors(os.path.join(aside, WEIGHTS_FILE), tensors, framework="pt", about=about)
    return inferred, declared


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Raises InputError where a folder holds what must not be lost."""
    try:
        entries = list(os.scandir(folder)) if folder.exists() else []
        is_current = folder.exists() and os.path.samefile(folder, os.curdir)
    except OSError as error:
        raise InputError(f"{folder}: could not be read: {error.strerror}") from error
    own = {WEIGHTS_FILE, CONFIG_FILE, CARD_FILE}
    others = sorted(entry.name for entry in entries if entry.name not in own or not entry.is_file())
    if not others and entries and WEIGHTS_FILE not in {entry.name for entry in entries}:
        others = sorted(entry.name for entry in entries)
    if others:
        raise InputError(
            f"{folder}: holds more than a saved model, and is never overwritten: {shown_list(others, 5)}; save into a "
            f"new folder"
        )
    if entries and not overwrite:
        raise InputError(f"{folder}: holds a model already, and is only overwritten with overwrite=True")
    if is_current:  # it is replaced as a whole, and the process would go on in the folder that is gone
        raise InputError(f"{folder}: must not be the working folder; name a folder in it")


def _declared(model: Model, inferred: Inferred) -> Declared:
    """Collects what weights do not tell."""
    declared = Declared(
        name=inferred.name,
        num_classes=inferred.num_classes,
        window_padding=model.config.window_padding,
        head=inferred.head,
    )
    if isinstance(model, TwinsBackbone):
        return declared
    require("model.num_classes", model.num_classes, is_integer(model.num_classes, 0), "an integer from 0")
    multi_label = isinstance(model, TwinsClassifier) and model.multi_label
    return declared._replace(
        class_names=model.class_names, preprocessing=model.preprocessing, multi_label=multi_label or None
    )


def _config(declared: Declared, model: Inferred) -> dict[str, Any]:
    """Returns the contents of `CONFIG_FILE`: `to_json`, and the keys by which timm adapts a classifier's ends."""
    config = to_json(declared, model)
    if model.kind_name == "classifier":  # timm has no other kind of model
        config["model_args"] = {"in_chans": model.in_channels}
        ends = {"first_conv": "patch_embeds.0.proj", "classifier": "head"}
        config["pretrained_cfg"] = config.get("pretrained_cfg", {}) | ends
    return config


def _host_params(model: Model, inferred: Inferred) -> Tensors:
    """Gathers parameters and running statistics from all devices: path -> array, as `Ported` has them."""
    params, stats = get_params(model), get_batch_stats(model)
    arrays = by_name("params", {"backbone": params} if isinstance(model, TwinsBackbone) else params)
    arrays |= by_name("batch_stats", stats)
    problems = list(array_misfits(arrays, inferred.expected(), abstract=False).values())
    for path, array in arrays.items() if not problems else ():
        if isinstance(array, jax.core.Tracer):
            raise InputError(f"model: {path} is traced by a transformation of JAX: save the model outside of it")
        if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
            raise InputError(
                f"model: {path} is sharded over processes: gather the parameters before, as "
                f"jax.experimental.multihost_utils.process_allgather(params, tiled=True) does"
            )
        arrays[path] = np.asarray(array)
        if arrays[path].dtype.name not in DTYPES:
            problems.append(f"  ! {path} has dtype {arrays[path].dtype}, expected one of {', '.join(DTYPES)}")
        elif not np.isfinite(arrays[path]).all():
            problems.append(f"  ! {path} holds NaN or infinity")
    if problems:
        raise InputError("\n".join([f"model: {len(problems)} parameters do not fit {inferred.name}", *problems]))
    return arrays
