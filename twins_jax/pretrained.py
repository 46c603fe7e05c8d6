"""Models with the weights of a checkpoint."""

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Unpack

import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from twins_jax.backbone import TwinsBackbone
from twins_jax.classifier import TwinsClassifier
from twins_jax.config import TwinsConfig, TwinsOptions, variant_config
from twins_jax.errors import InputError, require, shown_list
from twins_jax.functional import Params, get_params, set_params
from twins_jax.layers import LayerNorm, Linear

if TYPE_CHECKING:
    from twins_jax.port.convert import Ported
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
            upstream, whatever they begin with; a Hugging Face snapshot folder, or "hf-hub:" and a repository's name; an
            Orbax folder or .safetensors of this project, or a training run's folder (the newest checkpoint is taken).
        name: the variant; read off the weights where it is None.
        num_classes: outputs of the head; read off the weights where it is None. Where it differs from the
            checkpoint's, a fresh head takes the place of the checkpoint's (0: no head).
        ema: take the exponential moving average that a training checkpoint holds beside the weights.
        prefix: of a file with several models, what the names of the wanted one begin with, or the key that holds it.
        head: the name of the head in the file, such as "fc", where it is not "head"; "none" leaves it out.
        rngs: `params` stream for a fresh head; needed only for that.
        **overrides: see `TwinsOptions`; `in_channels` and `stage_norms` must be those of the weights.

    Returns:
        The model, all its weights from the checkpoint but a fresh head's, in `param_dtype` (float32 by default).

    Raises:
        InputError: (a ValueError) the source cannot be read, is of no known variant, does not fit it name by name or
            has no classifier (see `backbone_from_pretrained`); or an argument is not what it must be.
    """
    (model, params, _), hint = _port(source, name, ema, prefix, head)
    if model.num_classes is None:
        raise InputError(f"{source}: holds a backbone without a classifier: use backbone_from_pretrained{hint}")
    config = _config(model, overrides)
    classes = model.num_classes if num_classes is None else num_classes
    classifier = nnx.eval_shape(lambda: TwinsClassifier(config, classes, rngs=nnx.Rngs(0)))
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
    set_params(classifier, _to_params(params, config) | fresh)
    return classifier


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
        **overrides: see `TwinsOptions`; `in_channels` must be that of the weights. `stage_norms=True` adds fresh norms
            to weights without any, as upstream starts its dense SVT from a classifier's.

    Returns:
        The backbone, with `stage_norms` where the checkpoint has them, its weights in `param_dtype` (float32 by
        default).

    Raises:
        InputError: (a ValueError) the source cannot be read, is of no known variant or does not fit it name by name; or
            an argument is not what it must be.
    """
    (model, params, _), _ = _port(source, name, ema, prefix, head)
    config = _config(model, overrides)
    backbone = nnx.eval_shape(lambda: TwinsBackbone(config, rngs=nnx.Rngs(0)))
    fresh: Params = {}
    if config.stage_norms and not model.stage_norms:
        norms = (LayerNorm(dim, epsilon=1e-6, **config.dtypes) for dim in config.embed_dims)
        fresh = {"norms": {str(stage): get_params(norm) for stage, norm in enumerate(norms)}}
    set_params(backbone, _to_params(params, config)["backbone"] | fresh)
    return backbone


def _port(
    source: str | os.PathLike[str], name: str | None, ema: bool, prefix: str | None, head: str | None
) -> tuple["Ported", str]:
    """Returns the ported weights, and what to do about a head of another name."""
    from twins_jax.port.convert import port
    from twins_jax.port.read import read_weights

    weights = read_weights(source, ema=ema, prefix=prefix, head=head)
    ported = port(weights, name)
    if ported.not_ported:
        count, names = len(ported.not_ported), shown_list(ported.not_ported)
        _logger.warning("%s: %d tensors not ported: %s", source, count, names)
    return ported, weights.hint


def _to_params(params: Mapping[str, np.ndarray], config: TwinsConfig) -> Params:
    """Copies host arrays, which may map a file, into nested parameters of `param_dtype`."""
    arrays = {path: jnp.array(array, config.param_dtype) for path, array in params.items()}
    return traverse_util.unflatten_dict(arrays, sep="/")


def _config(model: "Inferred", overrides: TwinsOptions) -> TwinsConfig:
    """Returns the configuration of the weights, with the options that the weights leave open."""
    options = overrides.copy()
    channels = options.setdefault("in_channels", model.in_channels)
    require("in_channels", channels, channels == model.in_channels, f"{model.in_channels}, as in the weights")
    norms = options.setdefault("stage_norms", model.stage_norms)
    require("stage_norms", norms, norms or not model.stage_norms, "True, as in the weights")
    return variant_config(model.name, **options)
