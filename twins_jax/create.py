"""Models by name, with fresh weights."""

import fnmatch
from typing import Unpack

from flax import nnx

from twins_jax.backbone import TwinsBackbone
from twins_jax.classifier import TwinsClassifier
from twins_jax.config import VARIANTS, TwinsOptions, variant_config


def list_models(pattern: str = "*") -> list[str]:
    """The names that `create_model` takes: timm's for the six published variants, and `twins_svt_tiny`.

    Args:
        pattern: a shell-style wildcard that the names must match, such as "twins_svt*".
    """
    return sorted(fnmatch.filter(VARIANTS, pattern))


def create_model(
    name: str, *, num_classes: int = 1000, rngs: nnx.Rngs, **options: Unpack[TwinsOptions]
) -> TwinsClassifier:
    """Creates a classifier with the reference's random initial weights.

    Args:
        name: a variant, one of `list_models()`.
        num_classes: outputs of the head; 0 returns pooled features instead.
        rngs: `params` stream for the initial weights.
        **options: see `TwinsOptions`; `stage_norms` is for backbones only.

    Returns:
        A model that maps images [B, H, W, in_channels], normalized floats, to logits [B, num_classes].

    Raises:
        ValueError: naming the argument, its value and what it must be.
    """
    return TwinsClassifier(variant_config(name, **options), num_classes, rngs=rngs)


def create_backbone(name: str, *, rngs: nnx.Rngs, **options: Unpack[TwinsOptions]) -> TwinsBackbone:
    """Creates a backbone with the reference's random initial weights.

    Args:
        name: a variant, one of `list_models()`.
        rngs: `params` stream for the initial weights.
        **options: see `TwinsOptions`.

    Returns:
        A model that maps images [B, H, W, in_channels] of any H, W >= 32 to four maps at strides 4, 8, 16 and 32.

    Raises:
        ValueError: naming the argument, its value and what it must be.
    """
    return TwinsBackbone(variant_config(name, **options), rngs=rngs)
