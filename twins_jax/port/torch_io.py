"""Finds the state dict in a file of `torch.save`, as numpy arrays, and writes one."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from twins_jax.errors import InputError, shown, shown_list
from twins_jax.port.convert import Tensors
from twins_jax.port.names import BOOKKEEPING, HEAD_PARTS, ambiguous, count_by_prefix, find_prefixes, is_average
from twins_jax.port.numpy_array import NAMES as NUMPY_NAMES
from twins_jax.port.numpy_array import is_numpy_array, rebuild
from twins_jax.port.torch_file import Storage, TorchFile, open_torch_file
from twins_jax.port.torch_tensor import FUNCTIONS, NoPlainTensorError, Tensor, is_known, to_numpy
from twins_jax.port.unpickle import Placeholder

EMA_CONTAINERS = ("model_ema", "state_dict_ema", "ema", "ema_state_dict", "ema_model")
"""The keys under which training scripts store the exponential moving average of the weights."""

CONTAINERS = ("model", "state_dict", "model_state_dict", "module", "net", "network", *EMA_CONTAINERS)
"""The keys under which they (upstream's, timm's, OpenMMLab's) store state dicts, in order of preference."""

MAX_DEPTH = 6
"""Dicts, lists, tuples and objects within each other, below the whole file, in which state dicts are looked for."""

MAX_MODULES, MAX_MODULE_DEPTH, MAX_PARTS = 8, 32, 20_000
"""Pickled modules that are looked into, the depth of each, which could contain itself, and the parts of all values."""

MAX_ALIASES = 8
"""Places at which a dict is found again, as one is that is both the model and its moving average."""


class Contents(NamedTuple):
    """A state dict as numpy arrays.

    Attributes:
        tensors: name -> array, in the file's names and dtypes (bfloat16 as ml_dtypes has it).
        container: the key it was found under, such as "model" or "state.model"; "" for the whole file.
        ignored: names of its entries that are no tensors.
        unread: classes and functions that the file names; their objects were left alone.
        is_average: True if that key says that it is a moving average.
        class_names: as OpenMMLab's training scripts store them; of any model's classes.
    """

    tensors: Tensors
    container: str
    ignored: tuple[str, ...]
    unread: tuple[str, ...]
    is_average: bool
    class_names: tuple[str, ...] | None = None


class Candidate(NamedTuple):
    """A dict that may be a state dict: its keys from the whole file on, and its tensors' names."""

    path: tuple[str, ...]
    entries: Mapping[Any, Any]

    @property
    def is_average(self) -> bool:
        """True if its keys say that it is a moving average."""
        return any(map(is_average, self.path))


def read_torch(path: str, *, ema: bool = False, container: str | None = None) -> Contents:
    """Reads the tensors of a file that `torch.save` wrote, without torch; nothing that the file names is called.

    Args:
        path: an existing file that holds a state dict or a pickled module, or a dict with one, which is found by its
            contents; of several, `CONTAINERS` says which is preferred.
        ema: take one under a key with "ema" in it, such as `EMA_CONTAINERS`, or one with names that begin like this.
        container: take the one under this key, if there is one.

    Raises:
        InputError: the file is damaged or no checkpoint, holds several models, or a tensor that is no plain array.
    """
    file = open_torch_file(path, FUNCTIONS)
    found = _choose(list(_candidates(file.value)), path, ema, container)
    tensors, ignored = _read_tensors(file, found.entries) if found else ({}, ())
    understood = NUMPY_NAMES if found and any(map(is_numpy_array, found.entries.values())) else ()
    unread = tuple(name for name in file.names if not is_known(name) and name not in understood)
    if found is None:
        note = f"; left unread: {shown_list(unread, 10)}" if unread else ""
        allowed = f"a state dict, or one under a key such as {CONTAINERS[0]!r}"
        raise InputError(f"{path}: holds {_kind(file)}: must hold {allowed}{note}")
    return Contents(tensors, ".".join(found.path), ignored, unread, found.is_average, _class_names(file.value))


def _class_names(value: Any) -> tuple[str, ...] | None:
    """Returns `meta["CLASSES"]` (mmcv 1.x) or `meta["dataset_meta"]["classes"]` (mmengine) of a checkpoint."""
    meta = value.get("meta") if isinstance(value, dict) else None
    for keys in (("CLASSES",), ("dataset_meta", "classes"), ("dataset_meta", "CLASSES")):
        names = meta
        for key in keys:
            names = names.get(key) if isinstance(names, dict) else None
        if isinstance(names, tuple | list) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None


def _read_tensors(file: TorchFile, entries: Mapping[Any, Any]) -> tuple[Tensors, tuple[str, ...]]:
    tensors: Tensors = {}
    storages: dict[str, np.ndarray] = {}
    ignored = []
    has_tensors = any(isinstance(value, Tensor) for value in entries.values())
    for name, value in entries.items():
        label = shown(name) if isinstance(name, str) else f"a key of type {type(name).__name__}"
        # Beside tensors, a NumPy array under another name is a record of the training.
        is_record = has_tensors and is_numpy_array(value) and label.rpartition(".")[2] not in HEAD_PARTS
        if not (isinstance(name, str) and _is_array(value)) or is_record:
            ignored.append(label)
            continue
        try:
            if is_numpy_array(value):
                tensors[name] = rebuild(value)
                continue
            if not isinstance(value, Tensor):
                raise NoPlainTensorError(f"is of {shown(value.name)}")
            tensors[name] = to_numpy(file, value, storages)
        except ValueError as error:
            if name.rpartition(".")[2] not in BOOKKEEPING:
                raise InputError(f"{file.path}: {label} is no plain tensor: it {error}") from error
            ignored.append(label)
    return tensors, tuple(ignored)


TENSOR_MODULES = ("torch._utils.", "torch._tensor.", "torch.Tensor")
"""Modules whose functions make tensors."""


def _candidates(value: Any) -> Iterator[Candidate]:
    """Yields the dicts within a value, near ones first, each of them once; a pickled module as its state dict."""
    level: list[tuple[tuple[str, ...], Any]] = [((), value)]
    seen: dict[int, Mapping[Any, Any] | None] = {}
    modules = aliases = 0
    for _ in range(MAX_DEPTH + 1):
        below: list[tuple[tuple[str, ...], Any]] = []
        for path, inner in level:
            if id(inner) in seen:
                entries = seen[id(inner)]
                if entries and aliases < MAX_ALIASES:
                    aliases += 1
                    yield Candidate(path, entries)
                continue
            if modules >= MAX_MODULES and _is_module(inner):
                continue
            modules += _is_module(inner)
            seen[id(inner)] = entries = _entries(inner)
            if entries is not None:
                yield Candidate(path, entries)
            below += itertools.islice(_parts(path, inner), max(MAX_PARTS - len(below), 0))
        level = below


def _parts(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields what a value holds that may be or hold a state dict, and its place; modules hold their tensors alone."""
    if isinstance(value, dict):
        yield from (((*path, key), item) for key, item in value.items() if isinstance(key, str) and _may_hold(item))
    elif isinstance(value, (list, tuple)) and not isinstance(value, Tensor):
        yield from (((*path, str(index)), item) for index, item in enumerate(value) if _may_hold(item))
    elif isinstance(value, Placeholder) and not (_is_module(value) or _is_array(value)):
        # An object's own parts have no names of their own; torch.compile's has its module as an argument.
        arguments = value.arguments if isinstance(value.arguments, tuple) else ()
        yield from ((path, part) for part in (value.items, value.state, *arguments) if part and _may_hold(part))


def _may_hold(value: Any) -> bool:
    return isinstance(value, (dict, list, tuple, Placeholder)) and not isinstance(value, (Tensor, Storage))


def _is_module(value: Any) -> bool:
    return isinstance(value, Placeholder) and isinstance(value.state, dict) and "_modules" in value.state


def _entries(value: Any) -> Mapping[Any, Any] | None:
    """The entries of a dict or of an object like one, or the tensors of a pickled module by their names."""
    if _is_module(value):
        return dict(_module_tensors(value))
    if isinstance(value, Placeholder):
        return value.items or None
    return value if isinstance(value, dict) else None


def _module_tensors(module: Placeholder) -> Iterator[tuple[str, Any]]:
    """Yields the names and values of a module's state dict."""
    waiting, count = [("", module, 0)], 0
    while waiting and count < MAX_PARTS:
        prefix, inner, depth = waiting.pop()
        for group in ("_parameters", "_buffers"):
            for name, value in _items(inner.state, group):
                count += 1
                if value is not None:
                    yield prefix + name, value
        for name, value in _items(inner.state, "_modules"):
            count += 1
            if _is_module(value) and depth < MAX_MODULE_DEPTH and count < MAX_PARTS:
                waiting.append((f"{prefix}{name}.", value, depth + 1))


def _items(state: dict[Any, Any], group: str) -> Iterator[tuple[str, Any]]:
    entries = state.get(group)
    for name, value in entries.items() if isinstance(entries, dict) else ():
        if isinstance(name, str) and len(name) <= MAX_PART:
            yield name, value


MAX_PART = 64
"""Characters of the longest name of a module or parameter within its parent."""


def _choose(candidates: list[Candidate], path: str, ema: bool, container: str | None) -> Candidate | None:
    """Chooses among the dicts with a backbone's parameters, or else with any tensors; None if there is none."""
    counts = [(candidate, sum(count_by_prefix(_tensor_names(candidate)).values())) for candidate in candidates]
    most = max((count for _, count in counts), default=0)
    models = [candidate for candidate, count in counts if count and 2 * count >= most]
    if container is not None:
        chosen = [candidate for candidate in models if ".".join(candidate.path) == container.rstrip(".")]
        if chosen:
            return chosen[0]
    averages = [candidate for candidate in models if candidate.is_average]
    if ema and not averages:
        averages = [candidate for candidate in models if any(map(is_average, find_prefixes(_tensor_names(candidate))))]
    if ema and not averages:
        keys = shown_list([key for key in (candidates[0].entries if candidates else ()) if isinstance(key, str)], 5)
        raise InputError(f"{path}: has no {' or '.join(EMA_CONTAINERS)} with a model in it, only {keys or 'no names'}")
    models = averages if ema else [candidate for candidate in models if candidate not in averages] or averages
    if not models:
        return min(
            (candidate for candidate in candidates if any(map(_is_array, candidate.entries.values()))),
            key=_rank,
            default=None,
        )
    best = min(map(_rank, models))
    equal = [candidate for candidate in models if _rank(candidate) == best]
    if len({id(candidate.entries) for candidate in equal}) > 1:
        raise InputError(f"{path}: {ambiguous(['.'.join(candidate.path) for candidate in equal])}")
    return equal[0]


def _tensor_names(candidate: Candidate) -> Iterator[str]:
    return (name for name, value in candidate.entries.items() if isinstance(name, str) and _is_array(value))


def _is_array(value: Any) -> bool:
    is_made = isinstance(value, Placeholder) and (value.name.startswith(TENSOR_MODULES) or is_numpy_array(value))
    return isinstance(value, Tensor) or is_made


def _rank(candidate: Candidate) -> tuple[int, ...]:
    return tuple(CONTAINERS.index(key) if key in CONTAINERS else len(CONTAINERS) for key in candidate.path)


def _kind(file: TorchFile) -> str:
    """Says in words what a file holds."""
    value, tensors = file.value, "with tensors in no state dict" if file.spans else "without tensors"
    if _is_module(value):
        return f"a pickled module, of {shown(value.name)}, {tensors} (save model.state_dict())"
    if isinstance(value, Placeholder):
        return f"an object of {shown(value.name)} {tensors} (save model.state_dict())"
    return f"a {type(value).__name__} {tensors}"


def write_torch(path: str, tensors: Tensors) -> None:
    """Writes arrays, and empties their dict, as a plain state dict of contiguous tensors with `torch.save`.

    Raises:
        InputError: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: torch is needed to write this format; install it (the extra `torch`); .safetensors need none"
        ) from error
    torch.save({name: to_torch(np.ascontiguousarray(tensors.pop(name))) for name in list(tensors)}, path)


def to_torch(array: np.ndarray) -> Any:
    """A tensor that shares an array's memory, bfloat16 and the 8-bit floats included."""
    import torch

    if hasattr(ml_dtypes, array.dtype.name):  # numpy hands torch the bits, and torch has the dtype under the same name
        return torch.from_numpy(array.view(f"u{array.dtype.itemsize}")).view(getattr(torch, array.dtype.name))
    return torch.from_numpy(array)
