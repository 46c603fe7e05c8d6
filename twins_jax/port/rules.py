"""The one table that ties the names of Twins parameters in PyTorch to the paths in our models.

The PyTorch names are those of upstream's `gvt.py`, which timm kept. Paths are written with slashes, as in
"backbone/stages/0/blocks/1/attn/kv/kernel". `{s}` stands for a stage, `{b}` for a block within it and `{i}` for one of
the modules of a list. The names of segmentation heads are those of mmsegmentation, and the names of detectors those of
mmdet 2.x, with which upstream trained.

A `Layout` says how one kind of file writes the names of the table; the table itself serves every kind, both ways. A
head of another task is a group of rows like `CLASSIFIER`, added to the layouts whose files hold it.
"""

import dataclasses
import functools
import re
from typing import NamedTuple

import numpy as np


class Leaf(NamedTuple):
    """One tensor of a module.

    Attributes:
        torch: its last name in PyTorch.
        ours: its last name here.
        axes: the permutation of the PyTorch tensor's axes that gives ours.
        flattened: height and width of the map that a linear layer reads as one vector: PyTorch flattens [C, h, w], and
            we flatten [h, w, C]. None for all others.
    """

    torch: str
    ours: str
    axes: tuple[int, ...]
    flattened: tuple[int, int] | None = None


BIAS = Leaf("bias", "bias", (0,))
LINEAR = (Leaf("weight", "kernel", (1, 0)), BIAS)  # [out, in] -> [in, out]
CONV_KERNEL = Leaf("weight", "kernel", (2, 3, 1, 0))  # [out, in / groups, h, w] -> [h, w, in / groups, out]
CONV = (CONV_KERNEL, BIAS)
NORM = (Leaf("weight", "scale", (0,)), BIAS)
BATCH_NORM = (*NORM, Leaf("running_mean", "mean", (0,)), Leaf("running_var", "var", (0,)))
ROI_LINEAR = (Leaf("weight", "kernel", (1, 0), flattened=(7, 7)), BIAS)  # of a RoI's 7 x 7 cells
TRANSPOSED_CONV = (Leaf("weight", "kernel", (0, 2, 3, 1)), BIAS)  # [in, out, h, w] -> [in, h, w, out]

Modules = tuple[tuple[str, str, tuple[Leaf, ...]], ...]

BACKBONE: Modules = (
    ("patch_embeds.{s}.proj", "backbone/stages/{s}/patch_embed/proj", CONV),
    ("patch_embeds.{s}.norm", "backbone/stages/{s}/patch_embed/norm", NORM),
    ("pos_block.{s}.proj.0", "backbone/stages/{s}/peg", CONV),
    ("blocks.{s}.{b}.norm1", "backbone/stages/{s}/blocks/{b}/norm1", NORM),
    ("blocks.{s}.{b}.attn.qkv", "backbone/stages/{s}/blocks/{b}/attn/qkv", LINEAR),  # LSA
    ("blocks.{s}.{b}.attn.q", "backbone/stages/{s}/blocks/{b}/attn/q", LINEAR),  # GSA
    ("blocks.{s}.{b}.attn.kv", "backbone/stages/{s}/blocks/{b}/attn/kv", LINEAR),  # GSA
    ("blocks.{s}.{b}.attn.sr", "backbone/stages/{s}/blocks/{b}/attn/sub_sample", CONV),  # GSA
    ("blocks.{s}.{b}.attn.norm", "backbone/stages/{s}/blocks/{b}/attn/norm", NORM),  # GSA
    ("blocks.{s}.{b}.attn.proj", "backbone/stages/{s}/blocks/{b}/attn/proj", LINEAR),
    ("blocks.{s}.{b}.norm2", "backbone/stages/{s}/blocks/{b}/norm2", NORM),
    ("blocks.{s}.{b}.mlp.fc1", "backbone/stages/{s}/blocks/{b}/mlp/fc1", LINEAR),
    ("blocks.{s}.{b}.mlp.fc2", "backbone/stages/{s}/blocks/{b}/mlp/fc2", LINEAR),
    ("norm_list.{s}", "backbone/norms/{s}", NORM),  # upstream's dense SVT backbones only
)
CLASSIFIER: Modules = (
    ("norm", "norm", NORM),
    ("head", "head", LINEAR),
)


def _conv_module(torch: str, ours: str) -> Modules:
    """The rows of mmcv's `ConvModule` of a convolution without bias and BatchNorm, our `ConvBatchNorm`."""
    return (f"{torch}.conv", f"{ours}/conv", (CONV_KERNEL,)), (f"{torch}.bn", f"{ours}/bn", BATCH_NORM)


UPERNET: Modules = (
    *_conv_module("decode_head.psp_modules.{i}.1", "decode_head/pyramid_pooling/convs/{i}"),
    *_conv_module("decode_head.bottleneck", "decode_head/pyramid_pooling/bottleneck"),
    *_conv_module("decode_head.lateral_convs.{i}", "decode_head/lateral_convs/{i}"),
    *_conv_module("decode_head.fpn_convs.{i}", "decode_head/fpn_convs/{i}"),
    *_conv_module("decode_head.fpn_bottleneck", "decode_head/fpn_bottleneck"),
    *_conv_module("auxiliary_head.convs.0", "auxiliary_head/conv"),
    ("auxiliary_head.conv_seg", "auxiliary_head/classifier/conv", CONV),
)
SEMANTIC_FPN: Modules = (
    ("neck.lateral_convs.{i}.conv", "decode_head/neck/lateral_convs/{i}", CONV),
    ("neck.fpn_convs.{i}.conv", "decode_head/neck/fpn_convs/{i}", CONV),
    *_conv_module("decode_head.scale_heads.0.0", "decode_head/scale_heads/0/convs/0"),
    *_conv_module("decode_head.scale_heads.1.0", "decode_head/scale_heads/1/convs/0"),
    # Odd numbers are modules of mmsegmentation's that resize, and have no parameters.
    *_conv_module("decode_head.scale_heads.2.0", "decode_head/scale_heads/2/convs/0"),
    *_conv_module("decode_head.scale_heads.2.2", "decode_head/scale_heads/2/convs/1"),
    *_conv_module("decode_head.scale_heads.3.0", "decode_head/scale_heads/3/convs/0"),
    *_conv_module("decode_head.scale_heads.3.2", "decode_head/scale_heads/3/convs/1"),
    *_conv_module("decode_head.scale_heads.3.4", "decode_head/scale_heads/3/convs/2"),
)
SEGMENTATION: Modules = (
    *UPERNET,
    *SEMANTIC_FPN,
    ("decode_head.conv_seg", "decode_head/classifier/conv", CONV),  # of both
)

NECK: Modules = (
    ("neck.lateral_convs.{i}.conv", "neck/lateral_convs/{i}", CONV),
    ("neck.fpn_convs.{i}.conv", "neck/fpn_convs/{i}", CONV),
)
RETINANET: Modules = (
    ("bbox_head.cls_convs.{i}.conv", "heads/cls_convs/{i}", CONV),
    ("bbox_head.reg_convs.{i}.conv", "heads/reg_convs/{i}", CONV),
    ("bbox_head.retina_cls", "heads/cls", CONV),
    ("bbox_head.retina_reg", "heads/reg", CONV),
)
MASK_RCNN: Modules = (
    ("rpn_head.rpn_conv", "rpn/conv", CONV),
    ("rpn_head.rpn_cls", "rpn/cls", CONV),
    ("rpn_head.rpn_reg", "rpn/reg", CONV),
    ("roi_head.bbox_head.shared_fcs.0", "box_head/shared_fcs/0", ROI_LINEAR),
    ("roi_head.bbox_head.shared_fcs.1", "box_head/shared_fcs/1", LINEAR),
    ("roi_head.bbox_head.fc_cls", "box_head/cls", LINEAR),
    ("roi_head.bbox_head.fc_reg", "box_head/reg", LINEAR),
    ("roi_head.mask_head.convs.{i}.conv", "mask_head/convs/{i}", CONV),
    ("roi_head.mask_head.upsample", "mask_head/upsample", TRANSPOSED_CONV),
    ("roi_head.mask_head.conv_logits", "mask_head/logits", CONV),
)
DETECTION: Modules = (*NECK, *RETINANET, *MASK_RCNN)


class Match(NamedTuple):
    """The table's entry for one tensor.

    Attributes:
        name: on the other side.
        axes: the permutation of the file's axes that gives ours.
        flattened: as in `Leaf`; None where the file has our layout.
    """

    name: str
    axes: tuple[int, ...]
    flattened: tuple[int, int] | None = None

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """Returns a file's tensor in our layout: a view, or a copy where it is of a flattened map."""
        if self.flattened is None:
            return np.transpose(tensor, self.axes)
        outputs, inputs = tensor.shape
        return tensor.reshape(outputs, -1, *self.flattened).transpose(2, 3, 1, 0).reshape(inputs, outputs)

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """Returns our array in the file's layout: the inverse of `to_ours`."""
        if self.flattened is None:
            return np.transpose(array, np.argsort(self.axes))
        inputs, outputs = array.shape
        return array.reshape(*self.flattened, -1, outputs).transpose(3, 2, 0, 1).reshape(outputs, inputs)


class Row(NamedTuple):
    """A row of a layout: a file's name and our path, both as in the table; the others are as in `Match`."""

    theirs: str
    path: str
    axes: tuple[int, ...]
    flattened: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """The names and axes that one kind of file gives to the parameters of the table.

    Attributes:
        label: for people.
        is_torch: names and axes are PyTorch's.
        prefix: the start of the names that must all be in the table. Other names may stand in the file, such as those
            of heads that have no rows yet.
        rows: the names.
    """

    label: str
    is_torch: bool
    prefix: str
    rows: tuple[Row, ...]

    def to_ours(self, name: str) -> Match | None:
        """Returns the path in our models of a file's name, or None if the table lacks the name."""
        for (pattern, _), row in zip(self._patterns, self.rows, strict=True):
            if match := pattern.fullmatch(name):
                return Match(row.path.format(**match.groupdict()), row.axes, row.flattened)
        return None

    def to_theirs(self, path: str) -> Match | None:
        """Returns the file's name of a path in our models, or None if the table lacks the path."""
        for (_, pattern), row in zip(self._patterns, self.rows, strict=True):
            if match := pattern.fullmatch(path):
                return Match(row.theirs.format(**match.groupdict()), row.axes, row.flattened)
        return None

    @functools.cached_property
    def _patterns(self) -> tuple[tuple[re.Pattern[str], re.Pattern[str]], ...]:
        return tuple((_pattern(row.theirs), _pattern(row.path)) for row in self.rows)


def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template)
    return re.compile(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>0|[1-9][0-9]*)", escaped))


def _torch_rows(modules: Modules, prefix: str) -> tuple[Row, ...]:
    return tuple(
        Row(f"{prefix}{torch_module}.{leaf.torch}", f"{our_module}/{leaf.ours}", leaf.axes, leaf.flattened)
        for torch_module, our_module, leaves in modules
        for leaf in leaves
    )


def _own_rows(modules: Modules, without: str = "") -> tuple[Row, ...]:
    paths = [(f"{our_module}/{leaf.ours}", leaf) for _, our_module, leaves in modules for leaf in leaves]
    return tuple(Row(path.removeprefix(without), path, tuple(range(len(leaf.axes)))) for path, leaf in paths)


TORCH = Layout("timm or upstream classification", True, "", _torch_rows(BACKBONE + CLASSIFIER, ""))
# The classifier's rows serve upstream's dense backbones, which keep its norm and head and never use them.
_DENSE_ROWS = _torch_rows(BACKBONE + CLASSIFIER, "backbone.")
TORCH_DENSE = Layout(
    "upstream segmentation or detection", True, "backbone.", _DENSE_ROWS + _torch_rows(SEGMENTATION, "")
)
# A layout of its own: the neck has the names of Semantic FPN's, which is part of the head there.
TORCH_DETECTION = Layout("upstream detection", True, "backbone.", _DENSE_ROWS + _torch_rows(DETECTION, ""))
OURS = Layout("twins_jax", False, "", _own_rows(BACKBONE + CLASSIFIER + SEGMENTATION + DETECTION))
OURS_BACKBONE = Layout("twins_jax backbone", False, "", _own_rows(BACKBONE, without="backbone/"))

LAYOUTS = (TORCH, TORCH_DENSE, TORCH_DETECTION, OURS, OURS_BACKBONE)  # of two that fit as well, the first is taken
