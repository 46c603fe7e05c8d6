"""The one table that ties PyTorch's names of Twins parameters to the paths in our models.

The PyTorch names are timm's, which are those of upstream's `gvt.py`. Paths are written with slashes, as in
"backbone/stages/0/blocks/1/attn/kv/kernel". `{s}` stands for a stage and `{b}` for a block within it.
"""

import functools
import re
from typing import NamedTuple


class Leaf(NamedTuple):
    """One tensor of a module.

    Attributes:
        torch: its last name in PyTorch.
        ours: its last name here.
        axes: the permutation of the PyTorch tensor's axes that gives ours.
    """

    torch: str
    ours: str
    axes: tuple[int, ...]


BIAS = Leaf("bias", "bias", (0,))
LINEAR = (Leaf("weight", "kernel", (1, 0)), BIAS)  # [out, in] -> [in, out]
CONV = (Leaf("weight", "kernel", (2, 3, 1, 0)), BIAS)  # [out, in / groups, h, w] -> [h, w, in / groups, out]
NORM = (Leaf("weight", "scale", (0,)), BIAS)

MODULES: tuple[tuple[str, str, tuple[Leaf, ...]], ...] = (
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
    ("norm", "norm", NORM),
    ("head", "head", LINEAR),
)


class Match(NamedTuple):
    """What the table says of one tensor: its name on the other side, and the axes from PyTorch's tensor to ours."""

    name: str
    axes: tuple[int, ...]


def to_ours(torch_name: str) -> Match | None:
    """The path of a PyTorch parameter in our models, or None where the table has no such name."""
    return _translate(torch_name, _compiled()[0])


def to_torch(path: str) -> Match | None:
    """The PyTorch name of a parameter of ours, or None where the table has no such path."""
    return _translate(path, _compiled()[1])


_Rows = tuple[tuple[re.Pattern[str], str, tuple[int, ...]], ...]


@functools.cache
def _compiled() -> tuple[_Rows, _Rows]:
    """The table as (pattern, template of the other side, axes), once for each direction."""
    torch_rows, our_rows = [], []
    for torch_module, our_module, leaves in MODULES:
        for leaf in leaves:
            torch_name, path = f"{torch_module}.{leaf.torch}", f"{our_module}/{leaf.ours}"
            torch_rows.append((_pattern(torch_name), path, leaf.axes))
            our_rows.append((_pattern(path), torch_name, leaf.axes))
    return tuple(torch_rows), tuple(our_rows)


def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template)
    return re.compile(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>0|[1-9][0-9]*)", escaped))


def _translate(name: str, rows: _Rows) -> Match | None:
    for pattern, template, axes in rows:
        if match := pattern.fullmatch(name):
            return Match(template.format(**match.groupdict()), axes)
    return None
