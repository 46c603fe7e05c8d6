"""Models by name, with fresh or published weights."""

import fnmatch
from typing import Unpack, cast

from flax import nnx

from twins_jax.backbone import TwinsBackbone
from twins_jax.classifier import TwinsClassifier
from twins_jax.config import VARIANTS, TwinsOptions, check_options, variant_config
from twins_jax.detection.build import make_detector
from twins_jax.detection.detector import DetectionHead, detector_config
from twins_jax.detection.mask_rcnn import TwinsMaskRCNN
from twins_jax.detection.retinanet import TwinsRetinaNet
from twins_jax.errors import require
from twins_jax.paths import HUB_PREFIX
from twins_jax.pretrained import backbone_from_pretrained, from_pretrained
from twins_jax.published import PUBLISHED
from twins_jax.segmentation.segmenter import SegmentationHead, TwinsSegmenter, segmenter_config


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
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int = 1000,
    rngs: nnx.Rngs | None = None,
    **options: Unpack[TwinsOptions],
) -> TwinsClassifier:
    """Creates a classifier with random initial weights, drawn as the reference draws them (upstream `gvt.py`).

    Args:
        name: a variant, one of `list_models()`.
        pretrained: take the published weights instead, trained on ImageNet-1K, from the repository
            "timm/NAME.in1k" or Hugging Face's local cache (extra `hub`). `from_pretrained` takes those of a file.
        num_classes: outputs of the head; 0 leaves the head out, and the model returns pooled features. Other than 1000,
            the head is fresh.
        rngs: `params` stream for the initial weights; with `pretrained` needed only for a fresh head.
        **options: see `TwinsOptions`; `stage_norms` is for backbones only.

    Returns:
        A model that maps images [B, H, W, in_channels], normalized floats with H, W >= 32, to logits
        [B, num_classes] in `dtype`. It is deterministic unless called with `rngs`.

    Raises:
        InputError: (a ValueError) naming the argument, its value and what it must be; or the weights cannot be had.
    """
    check_options(options, "pretrained", "num_classes", "rngs")
    if (source := _published(name, pretrained)) is not None:
        return from_pretrained(source, name=name, num_classes=num_classes, rngs=rngs, **options)
    return TwinsClassifier(variant_config(name, **options), num_classes, rngs=cast("nnx.Rngs", rngs))  # checks them


def create_backbone(
    name: str, *, pretrained: bool = False, rngs: nnx.Rngs | None = None, **options: Unpack[TwinsOptions]
) -> TwinsBackbone:
    """Creates a backbone with random initial weights, drawn as the reference draws them (upstream `gvt.py`).

    Args:
        name: a variant, one of `list_models()`.
        pretrained: take the weights of the published classifier instead, as in `create_model`.
        rngs: `params` stream for the initial weights; not needed with `pretrained`.
        **options: see `TwinsOptions`.

    Returns:
        A model that maps images [B, H, W, in_channels], normalized floats of any H, W >= 32, to four maps
        [B, H // s, W // s, C] at strides s = 4, 8, 16 and 32, in `dtype`. It is deterministic unless called with
        `rngs`.

    Raises:
        InputError: (a ValueError) naming the argument, its value and what it must be; or the weights cannot be had.
    """
    check_options(options, "pretrained", "rngs")
    if (source := _published(name, pretrained)) is not None:
        return backbone_from_pretrained(source, name=name, **options)
    return TwinsBackbone(variant_config(name, **options), rngs=cast("nnx.Rngs", rngs))  # checks them


def create_segmenter(
    name: str,
    *,
    head: SegmentationHead = "upernet",
    num_classes: int = 150,
    rngs: nnx.Rngs,
    **options: Unpack[TwinsOptions],
) -> TwinsSegmenter:
    """Creates a segmenter with random initial weights, drawn as the reference draws them.

    Args:
        name: a variant, one of `list_models()`.
        head: "upernet" or "semantic_fpn".
        num_classes: outputs.
        rngs: `params` stream for the initial weights.
        **options: see `TwinsOptions`. As in upstream's segmentation, `window_padding` is "mask" and Twins-SVT has
            `stage_norms` unless they are given.

    Returns:
        A model that maps images [B, H, W, in_channels], normalized floats of any H, W >= 32, to logits
        [B, H, W, num_classes] in `dtype`. It is deterministic unless called with `rngs`.

    Raises:
        InputError: (a ValueError) naming the argument, its value and what it must be.
    """
    check_options(options, "head", "num_classes", "rngs")
    return TwinsSegmenter(segmenter_config(name, **options), head, num_classes, rngs=rngs)


def create_detector(
    name: str,
    *,
    head: DetectionHead = "retinanet",
    num_classes: int = 80,
    rngs: nnx.Rngs,
    **options: Unpack[TwinsOptions],
) -> TwinsRetinaNet | TwinsMaskRCNN:
    """Creates a detector with random initial weights, drawn as the reference draws them.

    Args:
        name: a variant, one of `list_models()`.
        head: "retinanet" or "mask_rcnn".
        num_classes: kinds of objects.
        rngs: `params` stream for the initial weights.
        **options: see `TwinsOptions`. As in upstream's detection, Twins-SVT has `stage_norms` unless they are given.

    Returns:
        A model whose `detect(images, sizes)` finds objects in images [B, H, W, in_channels], normalized floats, of
        heights and widths `sizes`, [B, 2], within their padding. It is deterministic unless called with `rngs`.

    Raises:
        InputError: (a ValueError) naming the argument, its value and what it must be.
    """
    check_options(options, "head", "num_classes", "rngs")
    return make_detector(detector_config(name, **options), head, num_classes, rngs=rngs)


def _published(name: str, pretrained: bool) -> str | None:
    """Returns the source of a variant's published weights; None if they are not wanted."""
    require("pretrained", pretrained, isinstance(pretrained, bool), "True or False")
    if not pretrained:
        return None
    variant_config(name)
    allowed = f"a variant with published weights, one of {', '.join(PUBLISHED)}"
    require("name", name, name in PUBLISHED, allowed)
    return f"{HUB_PREFIX}{PUBLISHED[name].repository}"
