"""The model of a dense task: fresh, with weights to start from, or with weights to be evaluated as they are."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from flax import nnx

from twins_jax import TwinsDetector, TwinsSegmenter, backbone_from_pretrained
from twins_jax.abstract import abstract_model
from twins_jax.errors import OtherKindError, require
from twins_jax.paths import weights_source
from twins_jax.preprocess import DEFAULT

from .config import ModelConfig

Model = TypeVar("Model", TwinsSegmenter, TwinsDetector)


class Settings(Protocol):
    """The settings of a run that decide about its model."""

    @property
    def model(self) -> ModelConfig: ...
    @property
    def head(self) -> Any: ...
    @property
    def init(self) -> str: ...
    @property
    def eval_only(self) -> bool: ...


def create_dense_model(
    config: Settings,
    num_classes: int,
    rngs: nnx.Rngs,
    *,
    create: Callable[..., Model],
    load: Callable[..., Model],
) -> Model:
    """Creates a model to train, with the weights of `config.init`; or loads it to evaluate.

    To train, a model of the same head gives all its weights, but the layers of the classes where the data has another
    number of them. Any other model gives its backbone's, and so does one whose `stage_norms` differ from those that
    `create` gives the variant. What is left is fresh.

    Args:
        config: the run's.
        num_classes: of the data set.
        rngs: `params` stream for fresh weights.
        create: `twins_jax.create_segmenter` or `create_detector`.
        load: `twins_jax.segmenter_from_pretrained` or `detector_from_pretrained`.

    Raises:
        InputError: `init` cannot be loaded or is of another variant than `model.name`; or, with `eval_only`, it has no
            such head, another number of classes, or is of images normalized otherwise.
    """
    options: dict[str, Any] = dict(config.model)
    if config.init and config.eval_only:
        model = load(weights_source("init", config.init), **options)
        images = model.preprocessing or DEFAULT
        for ok, allowed in (
            (model.head == config.head, f"of the head {config.head}: found {model.head}"),
            (model.num_classes == num_classes, f"of {num_classes} classes, as the data: found {model.num_classes}"),
            ((images.mean, images.std) == (DEFAULT.mean, DEFAULT.std), "of images with ImageNet's mean and std"),
        ):
            require("init", config.init, ok, allowed)
        return model
    source = weights_source("init", config.init) if config.init else None
    if source is not None:
        try:
            model = load(source, num_classes=num_classes, rngs=rngs, **options)
        except OtherKindError:
            pass  # it has no such heads
        else:
            # A later start may come without `init`: what it creates must have the places of all parameters.
            made = abstract_model(lambda rngs: create(head=config.head, num_classes=num_classes, rngs=rngs, **options))
            if (model.head, model.config.stage_norms) == (config.head, made.config.stage_norms):
                model.class_names = model.preprocessing = None  # those of its own data
                return model
    model = create(head=config.head, num_classes=num_classes, rngs=rngs, **options)
    if source is not None:
        model.backbone = backbone_from_pretrained(source, **options | {"stage_norms": model.config.stage_norms})
    return model
