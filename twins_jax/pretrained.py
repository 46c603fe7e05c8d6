"""Models by name, with fresh weights or with those of a checkpoint."""

import dataclasses
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jax.typing import DTypeLike

from twins_jax.backbone import TwinsBackbone
from twins_jax.classifier import TwinsClassifier
from twins_jax.config import VARIANTS, AttentionImplementation, TwinsConfig, WindowPadding, variant_config
from twins_jax.errors import InputError
from twins_jax.functional import Params, get_params, set_params
from twins_jax.layers import Linear

if TYPE_CHECKING:
    from twins_jax.port.convert import Ported

_logger = logging.getLogger(__name__)


def list_models() -> list[str]:
    """The names that `create_model` takes: timm's for the six published variants, and `twins_svt_tiny`."""
    return sorted(VARIANTS)


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_path_rate: float = 0.0,
    dropout_rate: float = 0.0,
    window_padding: WindowPadding = "zero",
    attention_implementation: AttentionImplementation = "auto",
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> TwinsClassifier:
    """Creates a classifier with the reference's random initial weights.

    Args:
        name: a variant, one of `list_models()`.
        num_classes: outputs of the head; 0 returns pooled features instead.
        in_channels: channels of the images.
        drop_path_rate: stochastic-depth rate of the last block, rising linearly from 0 (paper: 0.2 / 0.3 / 0.5 for
            small / base / large).
        dropout_rate: dropout after patch embeddings, attention projections and MLP layers (paper: 0).
        window_padding: what LSA does with maps that its windows do not tile: "zero" as timm and upstream detection, or
            "mask" as upstream segmentation; see `LocallyGroupedAttention`.
        attention_implementation: what computes the attentions: "xla", "pallas", "cudnn", or "auto" for the fastest; see
            `TwinsConfig`. One that does not apply is an error when the model is called.
        dtype: of the computation.
        param_dtype: of the parameters.
        remat: recompute activations in the backward pass instead of storing them.
        rngs: `params` stream for the initial weights.

    Returns:
        A model that maps images [B, H, W, in_channels], normalised floats, to logits [B, num_classes].

    Raises:
        ValueError: naming the argument, what was given and what is allowed.
    """
    config = dataclasses.replace(
        variant_config(name),
        in_channels=in_channels,
        drop_path_rate=drop_path_rate,
        dropout_rate=dropout_rate,
        window_padding=window_padding,
        attention_implementation=attention_implementation,
        dtype=dtype,
        param_dtype=param_dtype,
        remat=remat,
    )
    return TwinsClassifier(config, num_classes, rngs=rngs)


def create_backbone(
    name: str,
    *,
    in_channels: int = 3,
    drop_path_rate: float = 0.0,
    dropout_rate: float = 0.0,
    window_padding: WindowPadding = "zero",
    attention_implementation: AttentionImplementation = "auto",
    stage_norms: bool = False,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> TwinsBackbone:
    """Creates a backbone with the reference's random initial weights.

    Args:
        name: a variant, one of `list_models()`.
        in_channels: as in `create_model`, like the other arguments not listed.
        drop_path_rate: as in `create_model`.
        dropout_rate: as in `create_model`.
        window_padding: as in `create_model`.
        attention_implementation: as in `create_model`.
        stage_norms: a LayerNorm at the end of each stage, as upstream's dense SVT backbones have; its output is the
            stage's map and the next stage's input.
        dtype: as in `create_model`.
        param_dtype: as in `create_model`.
        remat: as in `create_model`.
        rngs: `params` stream for the initial weights.

    Returns:
        A model that maps images [B, H, W, in_channels] of any H, W >= 32 to four maps at strides 4, 8, 16 and 32.

    Raises:
        ValueError: naming the argument, what was given and what is allowed.
    """
    config = dataclasses.replace(
        variant_config(name),
        in_channels=in_channels,
        drop_path_rate=drop_path_rate,
        dropout_rate=dropout_rate,
        window_padding=window_padding,
        attention_implementation=attention_implementation,
        stage_norms=stage_norms,
        dtype=dtype,
        param_dtype=param_dtype,
        remat=remat,
    )
    return TwinsBackbone(config, rngs=rngs)


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    num_classes: int | None = None,
    ema: bool = False,
    rngs: nnx.Rngs | None = None,
    **overrides: Any,
) -> TwinsClassifier:
    """Creates a classifier with the weights of a checkpoint.

    Args:
        source: a PyTorch checkpoint (.safetensors; .pth and other files of `torch.save` need torch) with the names of
            timm or upstream; a Hugging Face snapshot folder, or "hf-hub:" and a repository's name; an Orbax folder or
            .safetensors of this project, or a training run's folder (the newest checkpoint is taken).
        name: the variant; read off the weights where it is None.
        num_classes: read off the weights where it is None. Where it differs from the checkpoint's, a fresh head takes
            the place of the checkpoint's (0: no head).
        ema: take the exponential moving average that a training checkpoint holds beside the weights.
        rngs: `params` stream for a fresh head; needed only for that.
        **overrides: `TwinsConfig`'s fields of use, such as `drop_path_rate`, `window_padding`, `dtype`.

    Returns:
        The model, all its weights from the checkpoint but a fresh head's, as `param_dtype` (float32).

    Raises:
        ValueError: the source cannot be read, is of no known variant, does not fit it name by name or has no
            classifier (see `backbone_from_pretrained`); or an argument is not allowed.
    """
    model, params, _ = _port(source, name, ema)
    if model.num_classes is None:
        raise InputError(f"{source}: holds a backbone without a classifier: use backbone_from_pretrained")
    config = _replace_uses(model.config(), **overrides)
    classes = model.num_classes if num_classes is None else num_classes
    classifier = nnx.eval_shape(lambda: TwinsClassifier(config, classes, rngs=nnx.Rngs(0)))
    fresh: Params = {}
    if classes != model.num_classes:
        params = {path: array for path, array in params.items() if not path.startswith("head/")}
        if classes:
            if rngs is None:
                raise InputError(f"num_classes={classes}: {source} has {model.num_classes}, a fresh head needs rngs")
            fresh = {"head": get_params(Linear(config.embed_dims[-1], classes, config=config, rngs=rngs))}
    set_params(classifier, _to_params(params, config) | fresh)
    return classifier


def backbone_from_pretrained(
    source: str | os.PathLike[str], *, name: str | None = None, ema: bool = False, **overrides: Any
) -> TwinsBackbone:
    """Creates a backbone with the weights of a classification, segmentation or detection checkpoint.

    A classifier's final norm and head are left out. What else a checkpoint holds that is no part of a backbone, such as
    the heads of segmentation and detection, is named in a logged warning.

    Args:
        source: as in `from_pretrained`; the names of upstream segmentation and detection checkpoints begin with
            "backbone.".
        name: the variant; read off the weights where it is None.
        ema: as in `from_pretrained`.
        **overrides: `TwinsConfig`'s fields of use, such as `drop_path_rate`, `window_padding`, `dtype`.

    Returns:
        The backbone, with `stage_norms` where the checkpoint has them, its weights as `param_dtype` (float32).

    Raises:
        ValueError: the source cannot be read, is of no known variant or does not fit it name by name; or an argument is
            not allowed.
    """
    model, params, not_ported = _port(source, name, ema)
    if not_ported:
        _logger.warning("%s: %d tensors not ported: %s", source, len(not_ported), ", ".join(not_ported))
    config = _replace_uses(model.config(), **overrides)
    backbone = nnx.eval_shape(lambda: TwinsBackbone(config, rngs=nnx.Rngs(0)))
    set_params(backbone, _to_params(params, config)["backbone"])
    return backbone


def _port(source: str | os.PathLike[str], name: str | None, ema: bool) -> "Ported":
    from twins_jax.port.convert import port
    from twins_jax.port.source import read_weights

    return port(read_weights(source, ema=ema), name)


def _to_params(params: Mapping[str, np.ndarray], config: TwinsConfig) -> Params:
    """Copies host arrays, which may map a file, into nested parameters of `param_dtype`."""
    arrays = {path: jnp.array(array, config.param_dtype) for path, array in params.items()}
    return traverse_util.unflatten_dict(arrays, sep="/")


def _replace_uses(config: TwinsConfig, **overrides: Any) -> TwinsConfig:
    """`dataclasses.replace` for the fields of use: the weights fix the others."""
    allowed = [field.name for field in dataclasses.fields(config) if field.default is not dataclasses.MISSING]
    for key, value in overrides.items():
        if key not in allowed:
            raise InputError(f"{key}={value!r} is no override: allowed are {', '.join(allowed)}")
        if key in ("in_channels", "stage_norms") and value != getattr(config, key):
            raise InputError(f"{key}={value!r}: the weights are for {getattr(config, key)!r}")
    return dataclasses.replace(config, **overrides)
