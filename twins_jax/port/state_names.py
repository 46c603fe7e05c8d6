"""Finds a model's parameters among the names of a saved JAX state, however it was nested, flattened and joined.

`nnx.state(model)` ends its names in "value", flattened states join them with dots or slashes, and training scripts keep
optimizers, random states and moving averages beside the model.
"""

import re
from collections import Counter
from collections.abc import Container, Iterable
from typing import NamedTuple

from twins_jax.errors import InputError, shown
from twins_jax.port.names import is_average

PREFERRED = ("", "params", "model")
"""The places that are taken where several hold a model, in this order."""

MOMENTS = ("opt_state", "mu", "nu", "trace")
"""Parts of the places where optimizers keep arrays under the names of the parameters."""

BATCH_STATS = "batch_stats"
"""The collection of Flax in which a state keeps running statistics, beside that of the parameters."""

BOXES = ("value", "raw_value")
"""The last parts of names under which NNX variables are saved."""

# Separators are those of flattened names, of `jax.tree_util.keystr` and of printed tuples.
_PARTS = re.compile(r"[^\[\](){}'\"./|:, ]+")
_KERNEL = re.compile(r"(?:^|/)(?=(?:backbone/)?stages/\d+/(?:.+/)?kernel$)")


class Selection(NamedTuple):
    """The parameters of one model among the entries of a file.

    Attributes:
        paths: the file's name -> the path in our models.
        note: the place in the file that held them and the names beside it, for people; empty for a whole file.
    """

    paths: dict[str, str]
    note: str


def select(names: Iterable[str], label: str, *, ema: bool = False, prefix: str | None = None) -> Selection:
    """Chooses the entries that are a model's parameters.

    Random states of `nnx.Rngs` (a `key` beside a `count`) are left out. All other entries at the model's place are
    kept, known or not: those that do not fit are an error later. Running statistics beside it, in Flax's collection of
    them, belong to the model. Names of PyTorch stay as they are.

    Args:
        names: of all entries, the levels joined by any of the usual separators.
        label: the file or folder, for errors.
        ema: take the moving average of the parameters.
        prefix: the place of the model that is wanted, its levels joined by dots or slashes.

    Raises:
        InputError: several places hold a model and none is known to be the one; there is no moving average to take; no
            model is at `prefix`; or two entries have one path.
    """
    paths = {name: _path(name) for name in names}
    places = _places(paths.values())
    models = [place for place in places if not _is_moment(place)]
    averages = [place for place in models if is_average(place)]
    if ema and not averages:
        raise InputError(f"{label}: holds one set of weights, and no moving average beside it")
    if not models:
        return Selection({name: name for name in paths}, "")
    if prefix is not None:
        place = prefix.replace(".", "/").strip("/")
        if place not in models or (ema and place not in averages):
            listed = ", ".join(map(repr, map(shown, averages if ema else models)))
            raise InputError(f"prefix={prefix!r}: {label} has no such model in it: must be one of {listed}")
        return _below(place, paths, places, label)
    candidates = averages if ema else [place for place in models if place not in averages] or averages
    preferred = [place for place in PREFERRED if place in candidates] or candidates
    if len(preferred) > 1 and preferred[0] not in PREFERRED:
        listed = ", ".join(map(repr, sorted(preferred)))
        raise InputError(f"{label}: holds several models, under {listed}: choose one with prefix= (--prefix)")
    return _below(preferred[0], paths, places, label)


def find_models(names: Iterable[str]) -> list[str]:
    """Returns the places that hold a model or a moving average of one, "" for the top."""
    return [place for place in _places(map(_path, names)) if not _is_moment(place)]


def _places(paths: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(path[: match.start()] for path in paths if (match := _KERNEL.search(path))))


def _below(place: str, paths: dict[str, str], places: Iterable[str], label: str) -> Selection:
    start = f"{place}/" if place else ""
    inner = tuple(f"{other}/" for other in places if other != place and other.startswith(start))
    parent, _, collection = place.rpartition("/")
    stats = "/".join([parent, BATCH_STATS, ""]).lstrip("/") if collection else None
    ours, beside = {}, dict.fromkeys(inner)
    for name, path in paths.items():
        if stats and path.startswith(stats):
            ours[name] = path.removeprefix(stats)
        elif not path.startswith(start):
            beside[f"{path.split('/')[0]}/"] = None
        elif not path.startswith(inner):
            ours[name] = path.removeprefix(start)
    count = Counter(ours.values())
    if twice := [path for path, times in count.items() if times > 1]:
        raise InputError(f"{label}: holds two arrays for {twice[0]}")
    ours = {name: path for name, path in ours.items() if not _is_random_state(path, count)}
    listed = ", ".join(sorted(other.rstrip("/") for other in beside)[:5])
    note = (f", under {place!r}" if place else "") + (f", beside {listed}" if listed else "")
    return Selection(ours, note)


def _path(name: str) -> str:
    parts = _PARTS.findall(name)
    return "/".join(parts[:-1] if parts[-1:] and parts[-1] in BOXES else parts)


def _is_moment(place: str) -> bool:
    return not set(MOMENTS).isdisjoint(place.split("/"))


def _is_random_state(path: str, known: Container[str]) -> bool:
    parent, _, leaf = path.rpartition("/")
    return leaf in ("key", "count") and f"{parent}/key" in known and f"{parent}/count" in known
