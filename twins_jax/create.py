"""Models by name, with fresh weights."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from twins_jax.backbone import TwinsBackbone
from twins_jax.classifier import TwinsClassifier
from twins_jax.config import VARIANTS, AttentionImplementation, WindowPadding, variant_config


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
        stage_norms: a LayerNorm on each of the four outputs, as upstream's dense SVT backbones have.
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
