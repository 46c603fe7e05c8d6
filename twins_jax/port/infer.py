"""Reads variant, head, channels, classes and norms off the names and shapes of a model's parameters."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from flax import nnx, traverse_util

from twins_jax.abstract import abstract_model
from twins_jax.backbone import TwinsBackbone
from twins_jax.classifier import TwinsClassifier
from twins_jax.config import VARIANTS, TwinsConfig, TwinsOptions, check_config, variant_config
from twins_jax.detection.anchors import RETINANET_ANCHORS
from twins_jax.detection.build import make_detector
from twins_jax.detection.detector import DetectionHead, TwinsDetector
from twins_jax.errors import InputError
from twins_jax.functional import get_batch_stats, get_params
from twins_jax.model import Model
from twins_jax.port.rules import OURS, OURS_BACKBONE, TORCH, TORCH_DENSE, TORCH_DETECTION, Layout
from twins_jax.segmentation.segmenter import SegmentationHead, TwinsSegmenter

Shape = tuple[int, ...]


class Classifier(NamedTuple):
    """A module whose number of outputs follows from that of the classes.

    Attributes:
        path: of the module.
        per_class: outputs of each class, such as one of each anchor.
        others: outputs of no class, such as that of the background.
    """

    path: str
    per_class: int = 1
    others: int = 0

    def num_classes(self, outputs: int) -> int:
        """Returns the number of classes of a module with so many outputs."""
        return (outputs - self.others) // self.per_class


class Kind(NamedTuple):
    """A kind of model.

    Attributes:
        noun: for people, "a classifier".
        task: Hugging Face's name of it.
        loader: the name of the public function that makes one from weights.
        mark: the beginning of paths that only models of this kind have; "" for those that no head of a dense task
            marks.
        classifiers: the modules that depend on the number of classes; the first one is asked for it first.
        usual_classes: those of upstream's checkpoints; assumed of weights without classifiers, to say how these should
            look.
        ours: the layout of files of this project.
        theirs: the layout of files of PyTorch.
        make: creates a model of a configuration, a number of classes (None for a backbone) and `rngs`.
    """

    noun: str
    task: str
    loader: str
    mark: str
    classifiers: tuple[Classifier, ...]
    usual_classes: int
    ours: Layout
    theirs: Layout
    make: Callable[[TwinsConfig, int | None, nnx.Rngs], Model]


def _make_classifier(config: TwinsConfig, num_classes: int | None, rngs: nnx.Rngs) -> Model:
    return TwinsClassifier(config, num_classes or 0, rngs=rngs)


def _make_backbone(config: TwinsConfig, _: int | None, rngs: nnx.Rngs) -> Model:
    return TwinsBackbone(config, rngs=rngs)


def _segmenter(head: SegmentationHead, noun: str, mark: str, *auxiliary: str) -> Kind:
    def make(config: TwinsConfig, num_classes: int | None, rngs: nnx.Rngs) -> Model:
        return TwinsSegmenter(config, head, num_classes or ADE20K_CLASSES, rngs=rngs)

    return Kind(
        noun=noun,
        task="image-segmentation",
        loader="segmenter_from_pretrained",
        mark=mark,
        classifiers=tuple(map(Classifier, ("decode_head/classifier/conv", *auxiliary))),
        usual_classes=ADE20K_CLASSES,
        ours=OURS,
        theirs=TORCH_DENSE,
        make=make,
    )


def _detector(head: DetectionHead, noun: str, mark: str, *classifiers: Classifier) -> Kind:
    def make(config: TwinsConfig, num_classes: int | None, rngs: nnx.Rngs) -> Model:
        return make_detector(config, head, num_classes or COCO_CLASSES, rngs=rngs)

    return Kind(
        noun=noun,
        task="object-detection",
        loader="detector_from_pretrained",
        mark=mark,
        classifiers=classifiers,
        usual_classes=COCO_CLASSES,
        ours=OURS,
        theirs=TORCH_DETECTION,
        make=make,
    )


ADE20K_CLASSES, COCO_CLASSES = 150, 80

KINDS = {
    "upernet": _segmenter(
        "upernet", "a UPerNet segmenter", "decode_head/pyramid_pooling/", "auxiliary_head/classifier/conv"
    ),
    "semantic_fpn": _segmenter("semantic_fpn", "a Semantic FPN segmenter", "decode_head/scale_heads/"),
    "retinanet": _detector(
        "retinanet", "a RetinaNet detector", "heads/", Classifier("heads/cls", per_class=RETINANET_ANCHORS.per_cell)
    ),
    "mask_rcnn": _detector(
        "mask_rcnn",
        "a Mask R-CNN detector",
        "rpn/",
        Classifier("box_head/cls", others=1),
        Classifier("box_head/reg", per_class=4),
        Classifier("mask_head/logits"),
    ),
    "classifier": Kind(
        noun="a classifier",
        task="image-classification",
        loader="from_pretrained",
        mark="",
        classifiers=(Classifier("head"),),
        usual_classes=0,
        ours=OURS,
        theirs=TORCH,
        make=_make_classifier,
    ),
    "backbone": Kind(
        noun="a backbone",
        task="image-feature-extraction",
        loader="backbone_from_pretrained",
        mark="",
        classifiers=(),
        usual_classes=0,
        ours=OURS_BACKBONE,
        theirs=TORCH_DENSE,
        make=_make_backbone,
    ),
}
"""The kinds of models, each under the name of its head."""


@dataclasses.dataclass(frozen=True)
class Inferred:
    """The model that a set of weights belongs to.

    Attributes:
        name: the variant.
        in_channels: of the images.
        num_classes: outputs of the head; 0: a classifier without head; None: a backbone alone.
        stage_norms: True if each of the backbone's stages ends with a norm.
        head: of a dense task, a key of `KINDS`; None for a classifier or a backbone.
    """

    name: str
    in_channels: int
    num_classes: int | None
    stage_norms: bool
    head: str | None = None

    @property
    def kind_name(self) -> str:
        """The key of `kind` in `KINDS`."""
        return self.head or ("backbone" if self.num_classes is None else "classifier")

    @property
    def kind(self) -> Kind:
        """The kind of model."""
        return KINDS[self.kind_name]

    def config(self) -> TwinsConfig:
        """The backbone's configuration."""
        return variant_config(self.name, in_channels=self.in_channels, stage_norms=self.stage_norms)

    def expected(self) -> Mapping[str, Shape]:
        """Path -> shape of all parameters and running statistics; paths of a backbone alone are below "backbone/"."""
        return _expected(self.config(), self.num_classes, self.kind_name)[0]

    def statistics(self) -> frozenset[str]:
        """The paths of the running statistics among them."""
        return _expected(self.config(), self.num_classes, self.kind_name)[1]


@functools.cache
def _expected(config: TwinsConfig, num_classes: int | None, kind: str) -> tuple[Mapping[str, Shape], frozenset[str]]:
    model = abstract_model(lambda rngs: KINDS[kind].make(config, num_classes, rngs))
    root = "backbone/" if isinstance(model, TwinsBackbone) else ""
    params, stats = (traverse_util.flatten_dict(tree, sep="/") for tree in (get_params(model), get_batch_stats(model)))
    return {f"{root}{path}": leaf.shape for path, leaf in (params | stats).items()}, frozenset(stats)


def infer(shapes: Mapping[str, Shape], label: str, *, is_dense: bool, name: str | None = None) -> Inferred:
    """Finds the model that parameters belong to.

    Only the features that tell variants and heads apart decide: blocks and channels of each stage, LSA, and the
    beginnings of names. Weights with a few tensors missing or misshapen are therefore still recognized, and then
    compared name by name.

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
    patch_kernel = shapes.get("backbone/stages/0/patch_embed/proj/kernel", ())
    marks = {kind.mark: head for head, kind in KINDS.items() if kind.mark}
    head = next((head for mark, head in marks.items() if any(path.startswith(mark) for path in shapes)), None)
    num_classes: int | None = None
    if head is not None:
        num_classes = max(_count_classes(shapes, KINDS[head]), 1)
    elif not is_dense and not stage_norms and any(path.startswith(CLASSIFIER_ROOTS) for path in shapes):
        num_classes = _count_classes(shapes, KINDS["classifier"])
    return Inferred(
        name=name or _infer_variant(shapes, label),
        in_channels=max(patch_kernel[2], 1) if len(patch_kernel) == 4 else 3,
        num_classes=num_classes,
        stage_norms=stage_norms,
        head=head,
    )


CLASSIFIER_ROOTS = ("norm/", "head/")
"""The beginnings of the paths of a classifier outside of its backbone."""


def _count_classes(shapes: Mapping[str, Shape], kind: Kind) -> int:
    leaves = ((module, f"{module.path}/{leaf}") for module in kind.classifiers for leaf in ("bias", "kernel"))
    counts = (module.num_classes(shapes[path][-1]) for module, path in leaves if shapes.get(path))
    return next(counts, kind.usual_classes)


def kind_name(model: Model) -> str:
    """Returns the key in `KINDS` of a model's kind."""
    if isinstance(model, TwinsSegmenter | TwinsDetector):
        return model.head
    return "classifier" if isinstance(model, TwinsClassifier) else "backbone"


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
            num_classes = None if isinstance(model, TwinsBackbone) else model.num_classes
            kind = kind_name(model)
            head = kind if KINDS[kind].mark else None
            return Inferred(name, config.in_channels, num_classes, config.stage_norms, head)
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
