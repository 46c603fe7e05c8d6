"""Brings the names of a file's tensors to those of the table: prefixes, left-over bookkeeping, other names of heads."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from twins_jax.errors import InputError, shown, shown_list
from twins_jax.port.rules import BACKBONE, DETECTION, SEGMENTATION, TORCH_DENSE, Modules

BOOKKEEPING = (
    "total_ops",  # thop's counts, in every module
    "total_params",
    "num_batches_tracked",  # BatchNorm's
    "n_averaged",  # torch.optim.swa_utils.AveragedModel's
    "relative_position_index",  # computed from the window's size, in models of windows
    "relative_coords_table",
    "attn_mask",
    "_metadata",  # of PyTorch's state dicts, where a copy has made it an entry
    "_extra_state",
)
"""Last parts of the names of tensors that hold no weights, whatever the model."""

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module")
"""Names under which wrappers of modules hold what they wrap: torch.compile, FSDP, activation checkpointing, DDP."""

HEAD_PARTS = ("weight", "bias")

HEAD_ROOTS = ("head", "fc", "classifier")
"""Modules beside a backbone's that are a head whatever their tensors' shapes."""

NO_HEAD = "none"
"""The value of `head` that drops a file's head."""

MAX_NAME = 300
"""Characters of the longest name that is looked at."""


class Names(NamedTuple):
    """A file's tensors under the names of the table.

    Attributes:
        tensors: name -> array.
        prefix: what the names of these began with in the file.
        ignored: names of tensors that are known to hold no weights.
        left_out: names of tensors that do not begin with the prefix, or belong to a head that is not wanted.
        heads: modules that may be the classifier's head under another name.
        whole_heads: those of them that are all of their head; others are a layer of a head of several.
        wrappers: parts of names that wrappers of modules had put in, and were taken out.
    """

    tensors: dict[str, np.ndarray]
    prefix: str
    ignored: tuple[str, ...]
    left_out: tuple[str, ...]
    heads: tuple[str, ...]
    whole_heads: tuple[str, ...]
    wrappers: tuple[str, ...]


def tidy_names(
    tensors: Mapping[str, np.ndarray],
    label: str,
    *,
    prefix: str | None = None,
    head: str | None = None,
    ema: bool = False,
) -> Names:
    """Finds the one prefix under which a file's names are a Twins backbone's in PyTorch, and takes it off.

    Any text that ends in a dot can be the prefix. "backbone." stays where it is the last part of it, for it marks the
    checkpoints of dense tasks; with `head` it goes, too, and where it is a classifier's and nothing stands beside it. A
    file without such names keeps its names.

    Args:
        tensors: name -> array, as a file has them.
        label: the file, for errors.
        prefix: the prefix; found where it is None.
        head: the name of the classifier's head, which becomes "head" (other tensors of a head's shape are left out); or
            `NO_HEAD`, to leave out all of them.
        ema: take a prefix that says it is of a moving average; otherwise they are passed over where others are there.

    Raises:
        InputError: several prefixes each have a model; the prefix is not of a moving average, with `ema`; or no tensors
            begin with `prefix`, or have the name `head`.
    """
    tensors, wrappers = _unwrap(tensors)
    ignored = tuple(name for name in tensors if name.rpartition(".")[2] in BOOKKEEPING)
    kept = {name: tensor for name, tensor in tensors.items() if name not in set(ignored)}
    found = _find_prefix(kept, label, ema) if prefix is None else _check_prefix(kept, label, prefix)
    if ema and not is_average(found):
        raise InputError(f"{label}: holds one set of weights, and no moving average beside it")
    stripped = found if head or _is_classifier(kept, found) else found.removesuffix(TORCH_DENSE.prefix)
    heads = find_heads(kept, found)
    inside = {name.removeprefix(stripped): tensor for name, tensor in kept.items() if name.startswith(stripped)}
    left_out = [name for name in kept if not name.startswith(stripped)]
    if head and not count_by_prefix(kept):
        raise InputError(f"head={head!r}: must be None for {label}, which has no names of PyTorch's")
    if head:
        own = f"{stripped}head"
        wanted = _check_head(kept, label, head, stripped, [own, *heads]) if head != NO_HEAD else ""
        taken = {f"{wanted}.{part}": f"head.{part}" for part in HEAD_PARTS if f"{wanted}.{part}" in kept}
        others = {f"{module}.{part}" for module in (own, *heads) for part in HEAD_PARTS} - taken.keys()
        if head == NO_HEAD:
            roots = tuple(_root(module, stripped) for module in (*(f"{stripped}{name}" for name in HEAD_ROOTS), *heads))
            others = {name for name in kept if name.startswith(roots)}
        inside = {name: array for name, array in inside.items() if stripped + name not in (others | taken.keys())}
        inside |= {ours: kept[name] for name, ours in taken.items()}
        left_out = [name for name in kept if name in others or (name in left_out and name not in taken)]
        heads = ()
    parts = {f"{module}.{part}" for module in heads for part in HEAD_PARTS}
    whole = tuple(
        module for module in heads if all(name in parts for name in kept if name.startswith(_root(module, found)))
    )
    return Names(inside, stripped, ignored, tuple(left_out), heads, whole, wrappers)


def _parts(modules: Modules) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"{module.partition('.')[0]}." for module, _, _ in modules))


BACKBONE_PARTS = _parts(BACKBONE)
DENSE_PARTS = _parts(SEGMENTATION + DETECTION)

_BACKBONE_NAME = re.compile(
    r"(.*\.)?(?:"
    + "|".join(
        re.sub(r"\\\{\w\\\}", "(?:0|[1-9][0-9]*)", re.escape(f"{module}.{leaf.torch}"))
        for module, _, leaves in BACKBONE
        for leaf in leaves
    )
    + ")",
    re.DOTALL,
)


def count_by_prefix(names: Iterable[str]) -> Counter[str]:
    """Counts the names of a backbone's parameters, by what stands before them."""
    matches = (_BACKBONE_NAME.fullmatch(without_wrappers(name)) for name in names if len(name) <= MAX_NAME)
    return Counter(match[1] or "" for match in matches if match)


_ROOTS = (*BACKBONE_PARTS, "backbone.", "norm.", "head.", *DENSE_PARTS)
_WRAPPED = re.compile(rf"(?:^|(?<=\.))(?:{'|'.join(map(re.escape, _ROOTS))}).*", re.DOTALL)
_WRAPPERS = re.compile(rf"(?<=\.)(?:{'|'.join(map(re.escape, WRAPPERS))})\.")


def without_wrappers(name: str) -> str:
    """Takes out what wrappers within a model put into a name; those around the model are left, as its prefix."""
    match = _WRAPPED.search(name)
    return name[: match.start()] + _WRAPPERS.sub("", match[0]) if match else name


def _unwrap(tensors: Mapping[str, np.ndarray]) -> tuple[Mapping[str, np.ndarray], tuple[str, ...]]:
    """Returns the tensors under names without wrappers, and these; as they are where two would have one name."""
    names = {name: without_wrappers(name) for name in tensors}
    if len(set(names.values())) < len(names):
        return tensors, ()
    found = [part for part in WRAPPERS if any(f".{part}." in name for name, plain in names.items() if name != plain)]
    return {names[name]: tensor for name, tensor in tensors.items()}, tuple(found)


def find_heads(tensors: Mapping[str, np.ndarray], prefix: str = "") -> tuple[str, ...]:
    """Finds modules with a classifier's shapes, weight [classes, C] and bias [classes], that the table does not know.

    Args:
        tensors: name -> array.
        prefix: what the names of the backbone begin with; its last stage's channels are C.
    """
    last = tensors.get(f"{prefix}pos_block.3.proj.0.bias")
    if last is None:
        return ()
    modules = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    beside = prefix.removesuffix(TORCH_DENSE.prefix)
    known = (*(f"{prefix}{part}" for part in BACKBONE_PARTS), *(f"{beside}{part}" for part in DENSE_PARTS))
    return tuple(
        module
        for module in modules
        if tensors[f"{module}.weight"].shape[1:] == last.shape
        and (bias := tensors.get(f"{module}.bias")) is not None
        and bias.shape == tensors[f"{module}.weight"].shape[:1]
        and module != f"{prefix}head"
        and not module.startswith(known)
    )


def _root(module: str, prefix: str) -> str:
    """Returns the beginning of the names of the whole head that a module is part of: one part beyond the prefix."""
    root = ""
    for part in module.split("."):
        root += f"{part}."
        if not prefix.startswith(root):
            break
    return root


def is_average(place: str) -> bool:
    """True for a prefix, or for keys joined by dots or slashes, that says that it holds a moving average."""
    return any("ema" in part.lower().split("_") for part in re.split("[./]", place))


def find_prefixes(names: Iterable[str]) -> list[str]:
    """Finds what the names of each model begin with: of all whose parameters are at least half as many as the most."""
    counts = count_by_prefix(names)
    most = max(counts.values(), default=0)
    return [prefix for prefix, count in counts.items() if 2 * count >= most]


def _is_classifier(tensors: Mapping[str, np.ndarray], prefix: str) -> bool:
    """True if a prefix with "backbone." holds a classifier, and nothing beside it makes it a dense task's."""
    beside = prefix.removesuffix(TORCH_DENSE.prefix)
    is_alone = all(name.startswith(prefix) for name in tensors if name.startswith(beside))
    return is_alone and {f"{prefix}norm.weight", f"{prefix}head.weight"} <= tensors.keys()


def _find_prefix(tensors: Mapping[str, np.ndarray], label: str, ema: bool) -> str:
    found = find_prefixes(tensors)
    averages = [prefix for prefix in found if is_average(prefix)]
    found = averages if ema else [prefix for prefix in found if prefix not in averages] or averages
    if len(found) > 1:
        raise InputError(f"{label}: {ambiguous(found)}")
    return found[0] if found else ""


def ambiguous(prefixes: list[str]) -> str:
    """The message for a file with several models, and how to choose one."""
    names = ", ".join(repr(shown(prefix)) for prefix in prefixes[:5])
    last = shown(prefixes[-1])
    return f"holds {len(prefixes)} models, under {names}: choose one with prefix={last!r} (--prefix {last})"


def _check_prefix(tensors: Mapping[str, np.ndarray], label: str, prefix: str) -> str:
    prefix = without_wrappers(f"{prefix}." if prefix and not prefix.endswith(".") else prefix)
    counts = count_by_prefix(tensors)
    if prefix not in counts:
        known = ", ".join(repr(shown(key)) for key, _ in counts.most_common(5)) or "none is there"
        raise InputError(f"prefix={prefix!r}: {label} has no Twins parameters under it: must be one of {known}")
    return prefix


def _check_head(tensors: Mapping[str, np.ndarray], label: str, head: str, prefix: str, known: list[str]) -> str:
    for module in (f"{prefix}{head}", head):
        if f"{module}.weight" in tensors:
            return module
    found = shown_list([name for name in known if f"{name}.weight" in tensors]) or "none is there"
    raise InputError(f"head={head!r}: {label} has no such tensors: must be one of {found}; or {NO_HEAD!r}")
