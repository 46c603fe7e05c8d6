"""The bytes that a compiled training step of a classifier moves between its chip and HBM, by part of the model.

`hbm` counts them, and the Python calls behind each instruction say to which part they belong. A fusion counts to the
part of its root, whatever else it computes: the norm before a product often does its work in the product's row.
"""

import dataclasses
from collections.abc import Iterable

from twins_jax.config import TwinsConfig

from .hbm import Access, read_accesses
from .hlo import Frame, parse
from .layer_costs import count

PARTS = (
    *("augmentation", "patch", "norms", "projections", "sub-sampling", "LSA", "GSA", "MLP", "PEG", "residual"),
    *("head", "AdamW", "other"),
)
"""`roofline.PARTS`, but for "projections", which are its "qkv" and "projection", and for "augmentation" of the images,
"residual" additions with stochastic depth, and "other", which the floor does not have."""

_FLOOR_PARTS = {"qkv": "projections", "projection": "projections"}

_BY_FUNCTION = {
    "LayerNorm.__call__": "norms",
    "PositionalEncodingGenerator.__call__": "PEG",
    "Mlp.__call__": "MLP",
    "PatchEmbed.__call__": "patch",
    "GlobalSubSampledAttention._representatives": "sub-sampling",
    "Linear.__call__": "projections",
    "TwinsClassifier.forward_head": "head",
    "window_attention": "LSA",
    "LocallyGroupedAttention.__call__": "LSA",
    "attention": "GSA",
    "GlobalSubSampledAttention.__call__": "GSA",
    "residual_add": "residual",
    "Block.__call__": "residual",
    "TwinsClassifier.forward_features": "head",
    "ClassificationTask.loss": "head",
    "ClassificationTask.augment": "augmentation",
}
"""By the function of a call. The innermost call that stands here decides; `_part` has the exceptions."""

_WITH_LINEAR = {"Mlp.__call__": "MLP", "TwinsClassifier.forward_head": "head"}
"""Functions whose linear layers are theirs."""


@dataclasses.dataclass(frozen=True)
class LayerBytes:
    """The bytes of one part of the model in a step on one chip.

    Attributes:
        forward_read: read in the forward pass; of AdamW and augmentation, all.
        forward_written: written in it.
        backward_read: read in the backward pass.
        backward_written: written in it.
        moves: of the sum, by instructions that copy or transpose within HBM and compute nothing.
        padding: of the sum, what fills up tiles.
        floor: the fewest bytes, by `layer_costs`.
    """

    forward_read: int = 0
    forward_written: int = 0
    backward_read: int = 0
    backward_written: int = 0
    moves: int = 0
    padding: int = 0
    floor: int = 0

    @property
    def total(self) -> int:
        """Read and written."""
        return self.forward_read + self.forward_written + self.backward_read + self.backward_written

    def __add__(self, other: "LayerBytes") -> "LayerBytes":
        """Adds all figures."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return LayerBytes(*(mine + others for mine, others in pairs))


def read_layer_bytes(text: str) -> dict[str, LayerBytes]:
    """Sums up, by part, the bytes of a compiled training step (`compiled.as_text()`), without floors.

    Raises:
        ValueError: the text is not that of an HLO module.
    """
    found: dict[str, LayerBytes] = {}
    for access in read_accesses(parse(text)):
        part = _part(access.stack)
        found[part] = found.get(part, LayerBytes()) + _figures(access)
    return {part: found[part] for part in PARTS if part in found}


def with_floors(
    parts: dict[str, LayerBytes], config: TwinsConfig, num_classes: int, images: int, height: int, width: int
) -> dict[str, LayerBytes]:
    """Adds the floors of a step on `images` of height x width on one chip that has all parameters."""
    floors: dict[str, int] = {}
    for operation in count(config, num_classes, images, height, width):
        part = _FLOOR_PARTS.get(operation.part, operation.part)
        floors[part] = floors.get(part, 0) + operation.count * (operation.forward.bytes + operation.backward.bytes)
    return {
        part: dataclasses.replace(parts.get(part, LayerBytes()), floor=floors.get(part, 0))
        for part in PARTS
        if part in parts or part in floors
    }


def table(parts: dict[str, LayerBytes]) -> list[str]:
    """The parts as lines of text, in GB."""
    head = f"{'HBM GB by part':14} {'forward read':>13} {'written':>8} {'backward read':>14} {'written':>8}"
    lines = [f"{head} {'sum':>8} {'moves':>8} {'padding':>8} {'floor':>8} {'sum/floor':>9}"]
    for part, found in (*parts.items(), ("total", total(parts.values()))):
        line = f"{part:14} {found.forward_read / 1e9:13.3f} {found.forward_written / 1e9:8.3f} "
        line += f"{found.backward_read / 1e9:14.3f} {found.backward_written / 1e9:8.3f} {found.total / 1e9:8.3f} "
        line += f"{found.moves / 1e9:8.3f} {found.padding / 1e9:8.3f} {found.floor / 1e9:8.3f}"
        lines.append(line + (f" {found.total / found.floor:9.1f}" if found.floor else ""))
    return lines


def total(parts: Iterable[LayerBytes]) -> LayerBytes:
    """The sum of all parts."""
    return sum(parts, LayerBytes())


def _figures(access: Access) -> LayerBytes:
    size = access.read + access.written
    common = {"moves": size if access.moves else 0, "padding": access.padding}
    if "transpose(" in access.op_name:
        return LayerBytes(backward_read=access.read, backward_written=access.written, **common)
    return LayerBytes(forward_read=access.read, forward_written=access.written, **common)


def _part(stack: tuple[Frame, ...]) -> str:
    functions = [frame.function for frame in stack]
    part = next((_BY_FUNCTION[function] for function in functions if function in _BY_FUNCTION), None)
    if "GlobalSubSampledAttention._representatives" in functions and part != "norms":
        return "sub-sampling"
    if part == "projections":
        return next((_WITH_LINEAR[function] for function in functions if function in _WITH_LINEAR), part)
    if part is None and any("/optax/" in frame.file for frame in stack):
        return "AdamW"
    return part or "other"
