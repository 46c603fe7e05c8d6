"""Converts a file's tensors to the complete parameters of one model and back, or lists everything that does not fit."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from twins_jax.config import WindowPadding
from twins_jax.detection.preprocess import DetectionPreprocessing
from twins_jax.errors import InputError, shown, shown_list
from twins_jax.fit import misfits
from twins_jax.port.infer import CLASSIFIER_ROOTS, Inferred, Shape, infer
from twins_jax.port.rules import LAYOUTS, OURS, Layout, Match
from twins_jax.preprocess import Preprocessing
from twins_jax.segmentation.preprocess import SegmentationPreprocessing

Tensors = dict[str, np.ndarray]
"""name or path -> array."""

AnyPreprocessing: TypeAlias = Preprocessing | SegmentationPreprocessing | DetectionPreprocessing
"""The preprocessing of the images of any model."""


class Declared(NamedTuple):
    """The model as files beside the weights, or metadata in theirs, describe it; None for what they leave out.

    Attributes:
        name: the variant.
        num_classes: outputs of the head.
        class_names: of these outputs.
        preprocessing: of the images with which the model was evaluated.
        window_padding: the one option that changes the function that the weights compute.
        multi_label: True if an image has any number of labels, and the outputs are logits of as many sigmoids.
        head: of a dense task, such as "upernet" or "retinanet".
    """

    name: str | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    preprocessing: AnyPreprocessing | None = None
    window_padding: WindowPadding | None = None
    multi_label: bool | None = None
    head: str | None = None

    def or_else(self, other: "Declared") -> "Declared":
        """Fills what this leaves out."""
        left_out = {field: value for field, value in other._asdict().items() if getattr(self, field) is None}
        return self._replace(**left_out)


NOTHING_DECLARED = Declared()


@dataclasses.dataclass(frozen=True)
class Weights:
    """Tensors as a file holds them, not yet known to fit any model.

    Attributes:
        label: the file or folder that they were read from, for errors.
        container: the place in it that held them.
        tensors: name -> array in the file's names, axes and dtypes.
        declared: what the file, or its neighbors, say of them.
        prefix: what the names began with in the file.
        left_out: names of the file's tensors without it, and of heads that were not wanted.
        ignored: names of entries that are known to hold no weights.
        unread: classes and functions that the file names, whose objects were left alone.
        heads: modules in the file that may be the classifier's head under another name.
        whole_heads: those of them that are all of their head.
        wrappers: parts of names that wrappers of modules had put in, and were taken out.
    """

    label: str
    container: str
    tensors: Tensors
    declared: Declared = NOTHING_DECLARED
    prefix: str = ""
    left_out: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    whole_heads: tuple[str, ...] = ()
    wrappers: tuple[str, ...] = ()

    @functools.cached_property
    def layout(self) -> Layout:
        """The layout that has most of these names; raises InputError where none has any."""
        known = {layout: sum(layout.to_ours(name) is not None for name in self.tensors) for layout in LAYOUTS}
        layout = max(known, key=lambda layout: known[layout])
        if not known[layout]:
            names = ", ".join(map(shown, list(self.tensors)[:3]))
            raise InputError(
                f"{self.label}: holds no Twins parameters, but {len(self.tensors)} tensors such as {names}"
            )
        return layout

    @property
    def notes(self) -> list[tuple[str, str]]:
        """The parts of the file that are no part of a model, each kind with its name."""
        entries = Counter(name.rpartition(".")[2] for name in self.ignored)
        counts = {f"{name} ({count} times)" if count > 1 else name: None for name, count in entries.items()}
        notes = (
            ("prefix", [self.prefix] if self.prefix else []),
            ("wrappers taken out of names", self.wrappers),
            ("ignored", counts),
            ("left unread", self.unread),
        )
        return [(kind, shown_list(names, 10)) for kind, names in notes if names]

    @property
    def hint(self) -> str:
        """Advice on a head under another name; empty if there is none."""
        if not self.heads:
            return ""
        have = "has" if len(self.heads) == 1 else "have"
        found = f"; {shown_list(self.heads, 5)} {have} the shape of a classifier's head"
        drops = "head='none' (--head none) drops it"
        if not {"norm.weight", "backbone.norm.weight"} & self.tensors.keys():
            return (
                f"{found}, but the classifier's final norm is missing: only backbone_from_pretrained takes it; {drops}"
            )
        if not self.whole_heads:
            return f"{found}, but is one layer of several: {drops}"
        first = shown(self.whole_heads[0])
        return f"{found}: head={first!r} (--head {first}) takes it, {drops}"

    def check_head(self, model: Inferred) -> None:
        """Raises InputError for a classifier without a head, where the file has one outside of the model's prefix.

        Args:
            model: of these weights.
        """
        if model.num_classes == 0 and self.heads:
            raise InputError(f"{self.label}: holds a classifier without a module named head{self.hint}")


class Ported(NamedTuple):
    """The complete parameters and running statistics of one model.

    Attributes:
        model: the model.
        params: path -> array in our axes and the file's dtypes; mostly views of the file's tensors. Paths are below
            "backbone/" for a backbone alone, too.
        not_ported: names of the file's tensors that are no part of the model: heads beside a backbone, the classifier's
            tensors that upstream's dense backbones keep, and `Weights.left_out`.
    """

    model: Inferred
    params: Tensors
    not_ported: tuple[str, ...]


def port(weights: Weights, name: str | None = None, *, without_dense_head: bool = False) -> Ported:
    """Finds the model that weights belong to, and uses every tensor of it exactly once.

    Args:
        weights: of any layout.
        name: the variant; read off the weights where it is None.
        without_dense_head: take a dense model's backbone alone, whatever its head looks like.

    Raises:
        InputError: no variant fits; or lists every tensor, in the file's own terms, that is missing, left over, of
            another shape, or holds integers, NaN or infinity.
    """
    matches = {tensor_name: weights.layout.to_ours(tensor_name) for tensor_name in weights.tensors}
    shapes = {}
    for tensor_name, tensor in weights.tensors.items():
        if (match := matches[tensor_name]) and len(match.axes) == tensor.ndim:
            shapes[match.name] = tuple(tensor.shape[axis] for axis in match.axes)
    model = infer(shapes, weights.label, is_dense=bool(weights.layout.prefix), name=name)
    if without_dense_head and model.head is not None:
        model = dataclasses.replace(model, head=None, num_classes=None)
    _check_declared(weights, model)

    expected, rows = {}, {}
    for path, shape in model.expected().items():
        row = weights.layout.to_theirs(path)
        if row is None:
            raise KeyError(f"the table of names has no row for {path}")
        expected[row.name] = tuple(shape[axis] for axis in np.argsort(row.axes))
        rows[path] = row
    not_ported = dict.fromkeys(  # a set that keeps the file's order
        tensor_name
        for tensor_name, match in matches.items()
        if tensor_name not in expected and _may_stay(tensor_name, match, weights.layout, model)
    )
    problems = _problems(weights.tensors, expected, not_ported)
    if problems:
        message = f"{weights.label}: {len(problems)} tensors do not fit {model.name}{weights.hint}"
        raise InputError("\n".join([message, *problems]))
    params = {path: row.to_ours(weights.tensors[row.name]) for path, row in rows.items()}
    return Ported(model, params, (*not_ported, *weights.left_out))


def to_layout(params: Mapping[str, np.ndarray], layout: Layout) -> Tensors:
    """Parameters under a layout's names and with its axes, mostly as views: the inverse of `port`.

    Args:
        params: path -> array in our axes, as `Ported` has them.
        layout: one that has a row for each of them.
    """
    tensors = {}
    for path, array in params.items():
        row = layout.to_theirs(path)
        if row is None:
            raise KeyError(f"the table of names has no row for {path} in the layout of {layout.label}")
        tensors[row.name] = row.to_theirs(array)
    return tensors


def _may_stay(tensor_name: str, match: Match | None, layout: Layout, model: Inferred) -> bool:
    """True for a tensor beside a model that does not make it another architecture.

    Beside a backbone these are all heads; beside a dense model the classifier that upstream's backbones keep.
    """
    if model.kind_name == "backbone":
        in_backbone = "backbone/" if layout is OURS else layout.prefix
        return not (match.name.startswith("backbone/") if match else tensor_name.startswith(in_backbone))
    is_kept = match is not None and match.name.startswith(CLASSIFIER_ROOTS)
    return is_kept and model.head is not None and layout is model.kind.theirs


def _check_declared(weights: Weights, model: Inferred) -> None:
    for what, says, found in (
        ("architecture", weights.declared.name, model.name),
        ("head", weights.declared.head, model.head),
        ("num_classes", weights.declared.num_classes, model.num_classes),
    ):
        if says is not None and found is not None and says != found:
            raise InputError(f"{weights.label}: its config.json says {what} {says!r}, its weights are of {found!r}")
    names = weights.declared.class_names
    if names is not None and model.num_classes and len(names) != model.num_classes:
        raise InputError(f"{weights.label}: declares {len(names)} class names, its weights are of {model.num_classes}")


def _problems(tensors: Tensors, expected: Mapping[str, Shape], not_ported: Collection[str]) -> list[str]:
    lines = misfits({name: tensor.shape for name, tensor in tensors.items() if name not in not_ported}, expected)
    for name in expected:
        if name in lines:
            continue
        if not jnp.issubdtype(tensors[name].dtype, jnp.floating):
            lines[name] = f"  ! {name} has dtype {tensors[name].dtype}, expected floating-point"
        elif not np.isfinite(tensors[name]).all():
            lines[name] = f"  ! {name} holds NaN or infinity"
    return list(lines.values())
