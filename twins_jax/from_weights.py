"""Makes models of weights that have been read and ported."""

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast, get_args

import jax
import numpy as np
from flax import nnx, traverse_util

from twins_jax.abstract import abstract_model
from twins_jax.backbone import TwinsBackbone
from twins_jax.base import AnsweringModel
from twins_jax.classifier import TwinsClassifier
from twins_jax.config import TwinsConfig, TwinsOptions, WindowPadding, variant_config
from twins_jax.detection.detector import TwinsDetector
from twins_jax.detection.retinanet import RetinaHead
from twins_jax.detection.roi_heads import BoxHead, MaskHead
from twins_jax.errors import InputError, OtherKindError, require
from twins_jax.fit import by_name
from twins_jax.functional import get_batch_stats, get_params, merge_model
from twins_jax.layers import LayerNorm, Linear
from twins_jax.port.convert import Declared, Ported, Weights
from twins_jax.port.infer import Inferred
from twins_jax.segmentation.fcn import PixelClassifier
from twins_jax.segmentation.segmenter import SegmentationHead, TwinsSegmenter

AnyModel = TypeVar("AnyModel", TwinsClassifier, TwinsSegmenter, TwinsDetector, TwinsBackbone)

_logger = logging.getLogger(__name__)


def make_classifier(
    source: str | os.PathLike[str],
    ported: Ported,
    weights: Weights,
    overrides: TwinsOptions,
    num_classes: int | None,
    rngs: nnx.Rngs | None = None,
) -> TwinsClassifier:
    """Makes the classifier of `twins_jax.from_pretrained`, which has the other arguments and errors."""
    model, params = ported.model, ported.params
    if model.kind_name != "classifier":
        raise _other_kind(source, model, "classifier", weights.hint)
    if num_classes is None:
        weights.check_head(model)
    config = _config(source, model, weights.declared, overrides)
    classes = model.num_classes if num_classes is None else num_classes
    assert classes is not None
    if classes != model.num_classes:
        params = {path: array for path, array in params.items() if not path.startswith("head/")}
        if classes:
            head = Linear(config.embed_dims[-1], classes, **config.dtypes, rngs=_fresh(rngs, source, model, classes))
            params |= {f"head/{leaf}": array for leaf, array in get_params(head).items()}
    classifier = _merge(lambda rngs: TwinsClassifier(config, classes, rngs=rngs), params)
    _declare(classifier, weights.declared, model)
    if classes and classes == model.num_classes:
        classifier.multi_label = bool(weights.declared.multi_label)
    return classifier


def make_segmenter(
    source: str | os.PathLike[str],
    ported: Ported,
    weights: Weights,
    overrides: TwinsOptions,
    num_classes: int | None = None,
    rngs: nnx.Rngs | None = None,
) -> TwinsSegmenter:
    """Makes the segmenter of `twins_jax.segmenter_from_pretrained`, which has the other arguments and errors."""
    model, params = ported.model, dict(ported.params)
    if model.kind.loader != "segmenter_from_pretrained":
        raise _other_kind(source, model, "segmentation head")
    options = overrides.copy()
    if weights.declared.window_padding is None:
        options.setdefault("window_padding", "mask")
    config = _config(source, model, weights.declared, options)
    require("stage_norms", config.stage_norms, config.stage_norms == model.stage_norms, "False, as in the weights")
    classes = model.num_classes if num_classes is None else num_classes
    assert classes is not None
    if classes != model.num_classes:
        streams = _fresh(rngs, source, model, classes)
        for module in model.kind.classifiers:  # each the one convolution of a `PixelClassifier`
            channels = params[f"{module.path}/kernel"].shape[-2]
            fresh = PixelClassifier(channels, classes, dtypes=config.dtypes, rngs=streams)
            params |= {f"{module.path}/{leaf}": array for leaf, array in get_params(fresh)["conv"].items()}
    head = cast("SegmentationHead", model.head)
    segmenter = _merge(lambda rngs: TwinsSegmenter(config, head, classes, rngs=rngs), params)
    _declare(segmenter, weights.declared, model)
    return segmenter


def make_detector(
    source: str | os.PathLike[str],
    ported: Ported,
    weights: Weights,
    overrides: TwinsOptions,
    num_classes: int | None = None,
    rngs: nnx.Rngs | None = None,
) -> TwinsDetector:
    """Makes the detector of `twins_jax.detector_from_pretrained`, which has the other arguments and errors."""
    model = ported.model
    params: dict[str, np.ndarray | jax.Array] = dict(ported.params)
    if model.kind.loader != "detector_from_pretrained":
        raise _other_kind(source, model, "detection head")
    config = _config(source, model, weights.declared, overrides)
    require("stage_norms", config.stage_norms, config.stage_norms == model.stage_norms, "False, as in the weights")
    classes = model.num_classes if num_classes is None else num_classes
    assert classes is not None
    if classes != model.num_classes:
        params |= _fresh_classifiers(model, classes, config, _fresh(rngs, source, model, classes).params())
    detector = _merge(lambda rngs: cast("TwinsDetector", model.kind.make(config, classes, rngs)), params)
    _declare(detector, weights.declared, model)
    return detector


def _fresh_classifiers(model: Inferred, num_classes: int, config: TwinsConfig, key: jax.Array) -> dict[str, jax.Array]:
    """Draws the parameters of a detector that depend on the number of classes: path -> array."""

    @jax.jit  # the parameters of the heads that are not asked for are not drawn
    def draw(key: jax.Array) -> dict[str, jax.Array]:
        rngs = nnx.Rngs(params=key)
        heads: dict[str, nnx.Module] = (
            {"heads": RetinaHead(num_classes, dtypes=config.dtypes, rngs=rngs)}
            if model.head == "retinanet"
            else {
                "box_head": BoxHead(num_classes, dtypes=config.dtypes, rngs=rngs),
                "mask_head": MaskHead(num_classes, dtypes=config.dtypes, rngs=rngs),
            }
        )
        drawn: dict[str, jax.Array] = {}
        for module in model.kind.classifiers:
            head, _, name = module.path.partition("/")
            drawn |= {f"{module.path}/{leaf}": array for leaf, array in get_params(heads[head])[name].items()}
        return drawn

    return draw(key)


def make_backbone(
    source: str | os.PathLike[str], ported: Ported, weights: Weights, overrides: TwinsOptions
) -> TwinsBackbone:
    """Makes the backbone of `twins_jax.backbone_from_pretrained`, which has the other arguments and errors."""
    model, root = ported.model, "backbone/"
    params = {path.removeprefix(root): array for path, array in ported.params.items() if path.startswith(root)}
    config = _config(source, model, weights.declared, overrides)
    if config.stage_norms and not model.stage_norms:
        norms = (LayerNorm(dim, epsilon=1e-6, **config.dtypes) for dim in config.embed_dims)
        params |= {
            f"norms/{i}/{leaf}": array for i, norm in enumerate(norms) for leaf, array in get_params(norm).items()
        }
    return _merge(lambda rngs: TwinsBackbone(config, rngs=rngs), params)


def _declare(model: AnsweringModel[Any], declared: Declared, source: Inferred) -> None:
    """Gives a model the preprocessing that its source declares and, unless its classes are others, their names."""
    images = declared.preprocessing
    model.preprocessing = images if isinstance(images, model.preprocessing_type) else None
    has_same_classes = model.num_classes > 0 and model.num_classes == source.num_classes
    model.class_names = declared.class_names if has_same_classes else None


def _other_kind(source: str | os.PathLike[str], model: Inferred, wanted: str, hint: str = "") -> OtherKindError:
    """The error for weights of another kind of model."""
    without = "" if model.head else f" without a {wanted}"
    return OtherKindError(f"{source}: holds {model.kind.noun}{without}: use {model.kind.loader}{hint}")


def _fresh(rngs: nnx.Rngs | None, source: str | os.PathLike[str], model: Inferred, num_classes: int) -> nnx.Rngs:
    """Returns the streams for a fresh head; raises InputError where they are not given."""
    if rngs is None:
        raise InputError(
            f"rngs=None: must be given for the fresh head of num_classes={num_classes}: {source} has "
            f"{model.num_classes}"
        )
    return rngs


def _merge(make: Callable[[nnx.Rngs], AnyModel], arrays: Mapping[str, np.ndarray | jax.Array]) -> AnyModel:
    """Makes a model of copies of arrays, which may map a file, in the dtypes of the model's own.

    Args:
        make: creates the model.
        arrays: path -> array of its parameters and running statistics.
    """
    abstract = abstract_model(make)

    def copied(tree: Mapping[str, Any]) -> dict[str, Any]:
        # Cast by NumPy: JAX would compile a program for each shape.
        shapes = by_name("model", tree)
        copies = {path: jax.device_put(np.array(arrays[path], of.dtype, order="C")) for path, of in shapes.items()}
        return traverse_util.unflatten_dict(copies, sep="/")

    model: AnyModel = merge_model(
        nnx.graphdef(abstract), copied(get_params(abstract)), copied(get_batch_stats(abstract))
    )
    return model


def _config(
    source: str | os.PathLike[str], model: Inferred, declared: Declared, overrides: TwinsOptions
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
