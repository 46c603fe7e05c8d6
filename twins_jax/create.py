"""Models by name, with fresh weights."""

import fnmatch
from typing import Unpack

from flax import nnx

from twins_jax.backbone import TwinsBackbone
from twins_jax.classifier import TwinsClassifier
from twins_jax.config import VARIANTS, TwinsOptions, check_options, variant_config
from twins_jax.errors import require


def list_models(pattern: str = "*") -> list[str]:
    """Lists the names that `create_model` takes: timm's for the six published variants, and `twins_svt_tiny`.

    Args:
        pattern: a shell-style wildcard that the names must match, such as "twins_svt*".

    Returns:
        The matching names, sorted; an empty list if none matches.

    Raises:
        InputError: (a ValueError) the pattern is no string.
    """
    require("pattern", pattern, isinstance(pattern, str), 'a wildcard, such as "twins_svt*"')
    return sorted(fnmatch.filter(VARIANTS, pattern))


def create_model(
    name: str, *, num_classes: int = 1000, rngs: nnx.Rngs, **options: Unpack[TwinsOptions]
) -> TwinsClassifier:
    """Creates a classifier with random initial weights, drawn as the reference draws them (upstream `gvt.py`).

    Args:
        name: a variant, one of `list_models()`.
        num_classes: outputs of the head; 0 leaves the head out, and the model returns pooled features.
        rngs: `params` stream for the initial weights.
        **options: see `TwinsOptions`; `stage_norms` is for backbones only.

    Returns:
        A model that maps images [B, H, W, in_channels], normalized floats with H, W >= 32, to logits
        [B, num_classes] in `dtype`. It is deterministic unless called with `rngs`.

    Raises:
        InputError: (a ValueError) naming the argument, its value and what it must be.
    """
    check_options(options, "num_classes", "rngs")
    return TwinsClassifier(variant_config(name, **options), num_classes, rngs=rngs)


def create_backbone(name: str, *, rngs: nnx.Rngs, **options: Unpack[TwinsOptions]) -> TwinsBackbone:
    """Creates a backbone with random initial weights, drawn as the reference draws them (upstream `gvt.py`).

    Args:
        name: a variant, one of `list_models()`.
        rngs: `params` stream for the initial weights.
        **options: see `TwinsOptions`.

    Returns:
        A model that maps images [B, H, W, in_channels], normalized floats of any H, W >= 32, to four maps
        [B, H // s, W // s, C] at strides s = 4, 8, 16 and 32, in `dtype`. It is deterministic unless called with
        `rngs`.

    Raises:
        InputError: (a ValueError) naming the argument, its value and what it must be.
    """
    check_options(options, "rngs")
    return TwinsBackbone(variant_config(name, **options), rngs=rngs)
