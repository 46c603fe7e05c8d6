"""Models from the weights of a checkpoint, and back into a folder or a repository."""

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Unpack, get_args

import jax
import numpy as np
from flax import nnx, traverse_util

from twins_jax.abstract import abstract_model
from twins_jax.backbone import TwinsBackbone
from twins_jax.classifier import Model, TwinsClassifier
from twins_jax.config import TwinsConfig, TwinsOptions, WindowPadding, check_options, variant_config
from twins_jax.errors import MAX_INT, InputError, is_integer, require, shown_list
from twins_jax.functional import Params, get_params, merge_model
from twins_jax.layers import LayerNorm, Linear, check_rngs

if TYPE_CHECKING:
    from twins_jax.port.convert import Declared, Ported, Weights
    from twins_jax.port.infer import Inferred

_logger = logging.getLogger(__name__)


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    num_classes: int | None = None,
    ema: bool = False,
    prefix: str | None = None,
    head: str | None = None,
    rngs: nnx.Rngs | None = None,
    **overrides: Unpack[TwinsOptions],
) -> TwinsClassifier:
    """Creates a classifier with the weights of a checkpoint.

    Args:
        source: a PyTorch checkpoint (.safetensors, or .pth and other files of `torch.save`) with the names of timm or
            upstream, whatever they begin with; a folder of `save_pretrained`, or of a Hugging Face snapshot; "hf-hub:"
            and a repository's name; the name of a variant with published weights, such as "twins_svt_small" or
            "twins_svt_small.in1k", unless a file or folder has that name; a model of this project saved by Orbax, as
            .safetensors or by flax.serialization; a training run's folder (the newest checkpoint is taken), or any
            folder with one checkpoint in it.
        name: the variant; read off the weights where it is None.
        num_classes: outputs of the head; read off the weights where it is None. Where it differs from the
            checkpoint's, a fresh head takes the place of the checkpoint's (0: no head).
        ema: take the exponential moving average that a training checkpoint holds beside the weights.
        prefix: of a file with several models, what the names of the wanted one begin with, or the key that holds it.
        head: the name of the head in the file, such as "fc", where it is not "head"; "none" leaves it out.
        rngs: `params` stream for a fresh head; needed only for that.
        **overrides: see `TwinsOptions`; `in_channels` and `stage_norms` must be those of the weights. Left out,
            `window_padding` is what the source declares, if it declares any; another one is a logged warning.

    Returns:
        The model, all its weights from the checkpoint but a fresh head's, in `param_dtype` (float32 by default). Where
        the source declares them (a training run's folder, a Hugging Face snapshot, what `port_weights.py` made of
        these), it has `preprocessing` and, unless the head is fresh, `class_names` and `multi_label`.

    Raises:
        InputError: (a ValueError) the source cannot be read, is of no known variant, does not fit it name by name or
            has no classifier (see `backbone_from_pretrained`); or an argument is not what it must be.
    """
    is_count = num_classes is None or is_integer(num_classes, 0)
    require("num_classes", num_classes, is_count, f"None or an integer from 0 to {MAX_INT}")
    if rngs is not None:
        check_rngs(rngs, "params")
    check_options(overrides, "name", "num_classes", "ema", "prefix", "head", "rngs")
    return _classifier(source, *_port(source, name, ema, prefix, head), overrides, num_classes, rngs)


def backbone_from_pretrained(
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    ema: bool = False,
    prefix: str | None = None,
    head: str | None = None,
    **overrides: Unpack[TwinsOptions],
) -> TwinsBackbone:
    """Creates a backbone with the weights of a classification, segmentation or detection checkpoint.

    A classifier's final norm and head are left out. A logged warning names the checkpoint's other tensors that are no
    part of a backbone, such as the heads of segmentation and detection.

    Args:
        source: as in `from_pretrained`; the names of upstream segmentation and detection checkpoints begin with
            "backbone.".
        name: the variant; read off the weights where it is None.
        ema: as in `from_pretrained`.
        prefix: as in `from_pretrained`.
        head: as in `from_pretrained`; "none" leaves out a head of any name.
        **overrides: see `TwinsOptions`; `in_channels` must be that of the weights, and `window_padding` is as in
            `from_pretrained`. `stage_norms=True` adds fresh norms to weights without any, as upstream starts its dense
            SVT from a classifier's.

    Returns:
        The backbone, with `stage_norms` where the checkpoint has them, its weights in `param_dtype` (float32 by
        default).

    Raises:
        InputError: (a ValueError) the source cannot be read, is of no known variant or does not fit it name by name; or
            an argument is not what it must be.
    """
    check_options(overrides, "name", "ema", "prefix", "head")
    return _backbone(source, *_port(source, name, ema, prefix, head), overrides)


def model_from_pretrained(
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    num_classes: int | None = None,
    ema: bool = False,
    prefix: str | None = None,
    head: str | None = None,
    **overrides: Unpack[TwinsOptions],
) -> Model:
    """Creates a classifier, or a backbone where the weights have no classifier: the commands take either.

    Arguments and errors are those of `from_pretrained` and `backbone_from_pretrained`, which it is in one. A backbone
    takes no notice of `num_classes`; no head is fresh.
    """
    ported, weights = _port(source, name, ema, prefix, head)
    if ported.model.num_classes is None:
        return _backbone(source, ported, weights, overrides)
    return _classifier(source, ported, weights, overrides, num_classes)


def save_pretrained(
    model: TwinsClassifier | TwinsBackbone, folder: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Saves a model as a folder that `from_pretrained` and timm load, and that `push_to_hub` uploads.

    `model.safetensors` holds the parameters in their dtypes under timm's names; those of a backbone have the prefix
    "backbone.", as in upstream's segmentation and detection. `config.json` has timm's form: the variant, `class_names`
    and `preprocessing` of a classifier, and `window_padding`. `dtype`, `remat` and the rates of dropout and stochastic
    depth are not saved.

    timm loads a classifier of a published variant with `timm.create_model("local-dir:FOLDER", pretrained=True)`. It has
    `window_padding` "zero" alone.

    Args:
        model: of a variant, one of `list_models()`. Parameters on several devices are gathered; those that are sharded
            over processes must be gathered before.
        folder: appears complete or not at all; its parents are made. An empty folder may exist. Where several processes
            share it, one of them should save.
        overwrite: replace a model that was saved in the folder; a README.md beside it is kept. A folder with anything
            else in it is never replaced.

    Raises:
        InputError: (a ValueError) the model is of no variant, its parameters do not fit it or are not finite, an
            attribute is not what it must be, or the folder cannot be written.
    """
    from twins_jax.port.save import save_model

    save_model(model, folder, overwrite=overwrite)


def push_to_hub(
    model: TwinsClassifier | TwinsBackbone,
    repo_id: str,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    commit_message: str = "Upload model with twins_jax",
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Uploads a model to a repository of Hugging Face, by huggingface_hub (extra `hub`).

    The repository gets the files of `save_pretrained` and, unless it has a README.md, a short model card without a
    license, which is yours to choose. `from_pretrained("hf-hub:OWNER/NAME")` loads the model again.

    Args:
        model: as in `save_pretrained`.
        repo_id: "OWNER/NAME", or "NAME" of your own account; the repository is made if it does not exist.
        token: with the right to write; None: that of `hf auth login`, or of the variable HF_TOKEN.
        private: make a new repository private; None: as the owner's settings have it.
        commit_message: of the upload.
        revision: branch to upload to, which must exist; None: main.
        create_pr: open a pull request instead, of main.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        InputError: (a ValueError) as `save_pretrained`; huggingface_hub is not installed; or the upload fails; says
            why.
    """
    from twins_jax.port.push import push_model

    return push_model(
        model,
        repo_id,
        token=token,
        private=private,
        commit_message=commit_message,
        revision=revision,
        create_pr=create_pr,
    )


def _port(
    source: str | os.PathLike[str], name: str | None, ema: bool, prefix: str | None, head: str | None
) -> "tuple[Ported, Weights]":
    require("ema", ema, isinstance(ema, bool), "True or False")
    require("prefix", prefix, prefix is None or isinstance(prefix, str), "None, or text, which may be empty")
    require("head", head, head is None or (isinstance(head, str) and head != ""), "None or a module's name")
    if name is not None:
        variant_config(name)  # raises InputError for one that is not known, before a large file is read
    from twins_jax.port.convert import port
    from twins_jax.port.read import read_weights

    weights = read_weights(source, ema=ema, prefix=prefix, head=head)
    ported = port(weights, name)
    if ported.not_ported:
        count, names = len(ported.not_ported), shown_list(ported.not_ported)
        _logger.warning("%s: %d tensors not ported: %s", source, count, names)
    return ported, weights


def _classifier(
    source: str | os.PathLike[str],
    ported: "Ported",
    weights: "Weights",
    overrides: TwinsOptions,
    num_classes: int | None,
    rngs: nnx.Rngs | None = None,
) -> TwinsClassifier:
    """Makes `from_pretrained`'s classifier of weights that `_port` has read."""
    model, params = ported.model, ported.params
    if model.num_classes is None:
        raise InputError(f"{source}: holds a backbone without a classifier: use backbone_from_pretrained{weights.hint}")
    if num_classes is None:
        weights.check_head(model)
    config = _config(source, model, weights.declared, overrides)
    classes = model.num_classes if num_classes is None else num_classes
    graphdef = nnx.graphdef(abstract_model(lambda rngs: TwinsClassifier(config, classes, rngs=rngs)))
    fresh: Params = {}
    if classes != model.num_classes:
        params = {path: array for path, array in params.items() if not path.startswith("head/")}
        if classes:
            if rngs is None:
                raise InputError(
                    f"rngs=None: must be given for the fresh head of num_classes={classes}: {source} has "
                    f"{model.num_classes}"
                )
            fresh = {"head": get_params(Linear(config.embed_dims[-1], classes, **config.dtypes, rngs=rngs))}
    classifier: TwinsClassifier = merge_model(graphdef, _to_params(params, config) | fresh)
    classifier.preprocessing = weights.declared.preprocessing
    if classes and classes == model.num_classes:
        classifier.class_names = weights.declared.class_names
        classifier.multi_label = bool(weights.declared.multi_label)
    return classifier


def _backbone(
    source: str | os.PathLike[str], ported: "Ported", weights: "Weights", overrides: TwinsOptions
) -> TwinsBackbone:
    """Makes `backbone_from_pretrained`'s backbone of weights that `_port` has read."""
    model, params = ported.model, ported.params
    config = _config(source, model, weights.declared, overrides)
    graphdef = nnx.graphdef(abstract_model(lambda rngs: TwinsBackbone(config, rngs=rngs)))
    fresh: Params = {}
    if config.stage_norms and not model.stage_norms:
        norms = (LayerNorm(dim, epsilon=1e-6, **config.dtypes) for dim in config.embed_dims)
        fresh = {"norms": {str(stage): get_params(norm) for stage, norm in enumerate(norms)}}
    backbone: TwinsBackbone = merge_model(graphdef, _to_params(params, config)["backbone"] | fresh)
    return backbone


def _to_params(params: Mapping[str, np.ndarray], config: TwinsConfig) -> Params:
    """Copies host arrays, which may map a file, into nested parameters of `param_dtype`."""
    # Cast by NumPy: JAX would compile a program for each shape.
    arrays = {path: jax.device_put(np.array(array, config.param_dtype, order="C")) for path, array in params.items()}
    return traverse_util.unflatten_dict(arrays, sep="/")


def _config(
    source: str | os.PathLike[str], model: "Inferred", declared: "Declared", overrides: TwinsOptions
) -> TwinsConfig:
    """Returns the configuration of the weights, with the options that the weights leave open."""
    options = overrides.copy()
    if (declares := declared.window_padding) is not None:
        padding = options.setdefault("window_padding", declares)
        if padding != declares and padding in get_args(WindowPadding):
            _logger.warning(
                "%s: window_padding=%r is given, and the weights declare %r: outputs differ where windows do not tile "
                "a map",
                source,
                padding,
                declares,
            )
    channels = options.setdefault("in_channels", model.in_channels)
    require("in_channels", channels, channels == model.in_channels, f"{model.in_channels}, as in the weights")
    norms = options.setdefault("stage_norms", model.stage_norms)
    require("stage_norms", norms, norms or not model.stage_norms, "True, as in the weights")
    return variant_config(model.name, **options)
