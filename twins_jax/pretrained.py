"""Models from the weights of a checkpoint, and back into a folder or a repository."""

import logging
import os
from typing import Unpack

from flax import nnx

from twins_jax.backbone import TwinsBackbone
from twins_jax.classifier import TwinsClassifier
from twins_jax.config import TwinsOptions, check_options, variant_config
from twins_jax.detection.detector import TwinsDetector
from twins_jax.errors import MAX_INT, is_integer, require, shown_list
from twins_jax.from_weights import make_backbone, make_classifier, make_detector, make_segmenter
from twins_jax.layers import check_rngs
from twins_jax.model import Model
from twins_jax.port.convert import Ported, Weights, port
from twins_jax.segmentation.segmenter import TwinsSegmenter

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
            has no classifier (see `segmenter_from_pretrained`, `detector_from_pretrained` and
            `backbone_from_pretrained`); or an argument is not what it must be.
    """
    is_count = num_classes is None or is_integer(num_classes, 0)
    require("num_classes", num_classes, is_count, f"None or an integer from 0 to {MAX_INT}")
    if rngs is not None:
        check_rngs(rngs, "params")
    check_options(overrides, "name", "num_classes", "ema", "prefix", "head", "rngs")
    return make_classifier(source, *_port(source, name, ema, prefix, head), overrides, num_classes, rngs)


def segmenter_from_pretrained(
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    num_classes: int | None = None,
    ema: bool = False,
    prefix: str | None = None,
    rngs: nnx.Rngs | None = None,
    **overrides: Unpack[TwinsOptions],
) -> TwinsSegmenter:
    """Creates a segmenter with the weights of a checkpoint, running statistics included.

    Args:
        source: as in `from_pretrained`; the names of PyTorch checkpoints are those of upstream and mmsegmentation 0.x.
            Of a training run `config.json` and `dataset.json` are read, too.
        name: the variant; read off the weights where it is None. The head always is: UPerNet has a pyramid pooling.
        num_classes: outputs; read off the weights where it is None. Where it differs from the checkpoint's, fresh
            classifiers of the decode head and the auxiliary head take the places of the checkpoint's.
        ema: as in `from_pretrained`; the running statistics are those beside the weights.
        prefix: as in `from_pretrained`.
        rngs: `params` stream for fresh classifiers; needed only for them.
        **overrides: see `TwinsOptions`; `in_channels` and `stage_norms` must be those of the weights. Left out,
            `window_padding` is what the source declares, or else "mask", as in upstream's segmentation.

    Returns:
        The model, all its weights from the checkpoint but fresh classifiers', in `param_dtype` (float32 by default).
        Where the source declares them, it has `preprocessing` and, unless its classifiers are fresh, `class_names`;
        files of mmsegmentation declare the names.

    Raises:
        InputError: (a ValueError) the source cannot be read, is of no known variant, does not fit it name by name or
            has no such head (see `from_pretrained`, `detector_from_pretrained` and `backbone_from_pretrained`); or an
            argument is not what it must be.
    """
    _check_dense(num_classes, rngs, overrides)
    return make_segmenter(source, *_port(source, name, ema, prefix, None), overrides, num_classes, rngs)


def detector_from_pretrained(
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    num_classes: int | None = None,
    ema: bool = False,
    prefix: str | None = None,
    rngs: nnx.Rngs | None = None,
    **overrides: Unpack[TwinsOptions],
) -> TwinsDetector:
    """Creates a detector with the weights of a checkpoint.

    Args:
        source: as in `from_pretrained`; the names of PyTorch checkpoints are those of upstream and mmdet 2.x and 3.x.
            Of a training run `config.json` and `dataset.json` are read, too.
        name: the variant; read off the weights where it is None. The detector always is: Mask R-CNN has a region
            proposal network.
        num_classes: kinds of objects; read off the weights where it is None. Where it differs from the checkpoint's,
            fresh layers take the places of those that depend on it: RetinaNet's `heads/cls`; Mask R-CNN's
            `box_head/cls`, `box_head/reg` and `mask_head/logits`.
        ema: as in `from_pretrained`.
        prefix: as in `from_pretrained`.
        rngs: `params` stream for fresh layers; needed only for them.
        **overrides: see `TwinsOptions`; `in_channels` and `stage_norms` must be those of the weights. Left out,
            `window_padding` is what the source declares, or else "zero", as in upstream's detection.

    Returns:
        A `TwinsRetinaNet` or a `TwinsMaskRCNN`, all its weights from the checkpoint but fresh layers', in `param_dtype`
        (float32 by default). Where the source declares them, it has `preprocessing` and, unless it has fresh layers,
        `class_names`; files of mmdet declare the names.

    Raises:
        InputError: (a ValueError) the source cannot be read, is of no known variant, does not fit it name by name or
            has no such heads (see `from_pretrained`, `segmenter_from_pretrained` and `backbone_from_pretrained`); or an
            argument is not what it must be.
    """
    _check_dense(num_classes, rngs, overrides)
    return make_detector(source, *_port(source, name, ema, prefix, None), overrides, num_classes, rngs)


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
    return make_backbone(source, *_port(source, name, ema, prefix, head, without_dense_head=True), overrides)


def model_from_pretrained(
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    num_classes: int | None = None,
    ema: bool = False,
    prefix: str | None = None,
    head: str | None = None,
    requires_head: bool = False,
    **overrides: Unpack[TwinsOptions],
) -> Model:
    """Creates a classifier, a segmenter, a detector or a backbone, as the weights are: the commands take any.

    Arguments and errors are those of `from_pretrained`, `segmenter_from_pretrained`, `detector_from_pretrained` and
    `backbone_from_pretrained`, which it is in one. Only a classifier takes notice of `num_classes`; no head is fresh.
    With `requires_head` a backbone alone is the error of `from_pretrained`.
    """
    ported, weights = _port(source, name, ema, prefix, head)
    is_backbone = ported.model.kind_name == "backbone"
    if ported.model.kind_name == "classifier" or (is_backbone and requires_head):
        return make_classifier(source, ported, weights, overrides, num_classes)
    if is_backbone:
        return make_backbone(source, ported, weights, overrides)
    if ported.model.kind.loader == "segmenter_from_pretrained":
        return make_segmenter(source, ported, weights, overrides)
    return make_detector(source, ported, weights, overrides)


def save_pretrained(model: Model, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Saves a model as a folder that `from_pretrained` and timm load, and that `push_to_hub` uploads.

    `model.safetensors` holds the parameters and running statistics in their dtypes under timm's names; those of a
    backbone have the prefix "backbone.", as in upstream's segmentation and detection, and those of a segmenter or a
    detector are upstream's. `config.json` has timm's form: the variant, the head of a dense task, `class_names` and
    `preprocessing` of all but a backbone, and `window_padding`. `dtype`, `remat` and the rates of dropout and
    stochastic depth are not saved.

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
    model: Model,
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


def _check_dense(num_classes: int | None, rngs: nnx.Rngs | None, overrides: TwinsOptions) -> None:
    """Raises InputError for what is wrong with the arguments that segmenters and detectors share."""
    is_count = num_classes is None or is_integer(num_classes, 1)
    require("num_classes", num_classes, is_count, f"None or an integer from 1 to {MAX_INT}")
    if rngs is not None:
        check_rngs(rngs, "params")
    check_options(overrides, "name", "num_classes", "ema", "prefix", "rngs")


def _port(
    source: str | os.PathLike[str],
    name: str | None,
    ema: bool,
    prefix: str | None,
    head: str | None,
    *,
    without_dense_head: bool = False,
) -> tuple[Ported, Weights]:
    require("ema", ema, isinstance(ema, bool), "True or False")
    require("prefix", prefix, prefix is None or isinstance(prefix, str), "None, or text, which may be empty")
    require("head", head, head is None or (isinstance(head, str) and head != ""), "None or a module's name")
    if name is not None:
        variant_config(name)  # raises InputError for one that is not known, before a large file is read
    from twins_jax.port.read import read_weights

    weights = read_weights(source, ema=ema, prefix=prefix, head=head)
    ported = port(weights, name, without_dense_head=without_dense_head)
    if ported.not_ported:
        count, names = len(ported.not_ported), shown_list(ported.not_ported, 10)
        _logger.warning("%s: %d tensors not ported: %s", source, count, names)
    return ported, weights
