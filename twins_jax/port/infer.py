"""Reads variant, channels, classes and norms off the names and shapes of a model's parameters."""

import dataclasses
import functools
import re
from collections.abc import Mapping

from flax import traverse_util

from twins_jax.abstract import abstract_model
from twins_jax.backbone import TwinsBackbone
from twins_jax.classifier import Model, TwinsClassifier
from twins_jax.config import VARIANTS, TwinsConfig, TwinsOptions, check_config, variant_config
from twins_jax.errors import InputError
from twins_jax.functional import get_params

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Inferred:
    """The model that a set of weights belongs to.

    Attributes:
        name: the variant.
        in_channels: of the images.
        num_classes: outputs of the head; 0: a classifier without head; None: a backbone alone.
        stage_norms: True if each of the backbone's stages ends with a norm.
    """

    name: str
    in_channels: int
    num_classes: int | None
    stage_norms: bool

    def config(self) -> TwinsConfig:
        """The backbone's configuration."""
        return variant_config(self.name, in_channels=self.in_channels, stage_norms=self.stage_norms)

    def expected(self) -> Mapping[str, Shape]:
        """Path -> shape of every parameter, with paths below "backbone/" for a backbone alone, too."""
        return _expected(self.config(), self.num_classes)


@functools.cache
def _expected(config: TwinsConfig, num_classes: int | None) -> Mapping[str, Shape]:
    if num_classes is None:
        params = {"backbone": get_params(abstract_model(lambda rngs: TwinsBackbone(config, rngs=rngs)))}
    else:
        params = get_params(abstract_model(lambda rngs: TwinsClassifier(config, num_classes, rngs=rngs)))
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(params, sep="/").items()}


def infer(shapes: Mapping[str, Shape], label: str, *, is_dense: bool, name: str | None = None) -> Inferred:
    """Finds the model that parameters belong to.

    Only the features that tell variants apart decide: blocks and channels of each stage, and LSA. Weights with a few
    tensors missing or misshapen are therefore still recognized, and then compared name by name.

    Args:
        shapes: path -> shape of the parameters, in our names and layout.
        label: the file or folder that the weights were read from, for the error.
        is_dense: the file is of a dense task; a classifier's norm and head in it are left-overs.
        name: the variant, if it is known already.

    Raises:
        InputError: no variant, or more than one, has these stages; says what they look like and what the variants have.
    """
    if name is not None:
        variant_config(name)
    stage_norms = any(path.startswith("backbone/norms/") for path in shapes)
    has_classifier = any(not path.startswith("backbone/") for path in shapes)
    head = shapes.get("head/bias") or shapes.get("head/kernel") or (0,)
    patch_kernel = shapes.get("backbone/stages/0/patch_embed/proj/kernel", ())
    return Inferred(
        name=name or _infer_variant(shapes, label),
        in_channels=max(patch_kernel[2], 1) if len(patch_kernel) == 4 else 3,
        num_classes=head[-1] if has_classifier and not is_dense and not stage_norms else None,
        stage_norms=stage_norms,
    )


def of_model(model: Model) -> Inferred:
    """Finds the variant of a model, which its weights will be read as.

    Raises:
        InputError: its architecture is of no variant.
    """
    config = model.config
    check_config(config)
    fields = [field.name for field in dataclasses.fields(config) if field.name not in TwinsOptions.__annotations__]
    found = {field: getattr(config, field) for field in fields}
    for name, variant in VARIANTS.items():
        if all(getattr(variant, field) == value for field, value in found.items()):
            num_classes = model.num_classes if isinstance(model, TwinsClassifier) else None
            return Inferred(name, config.in_channels, num_classes, config.stage_norms)
    described = ", ".join(f"{field}={value}" for field, value in found.items())
    raise InputError(f"model.config: must be of a variant, one of {', '.join(VARIANTS)}; is {described}")


def _infer_variant(shapes: Mapping[str, Shape], label: str) -> str:
    depths, dims = [], []
    for stage in range(4):
        blocks = [int(m[1]) for path in shapes if (m := re.match(rf"backbone/stages/{stage}/blocks/(\d+)/", path))]
        depths.append(max(blocks, default=-1) + 1)
        peg_bias = shapes.get(f"backbone/stages/{stage}/peg/bias")
        dims.append(peg_bias[0] if peg_bias else None)
    has_lsa = any("/attn/qkv/" in path for path in shapes)

    fitting = [
        name
        for name, config in VARIANTS.items()
        if config.depths == tuple(depths)
        and has_lsa == (config.window_size is not None)
        and all(dim in (None, expected) for dim, expected in zip(dims, config.embed_dims, strict=True))
    ]
    if len(fitting) == 1:
        return fitting[0]
    known = "; ".join(f"{key}: {VARIANTS[key].depths} and {VARIANTS[key].embed_dims}" for key in fitting or VARIANTS)
    raise InputError(
        f"{label}: {'could be more than one' if fitting else 'holds no known'} Twins variant: it looks like depths "
        f"{tuple(depths)} and channels {tuple(dims)} {'with' if has_lsa else 'without'} LSA; "
        f"{'fitting' if fitting else 'known'} are {known}"
    )
