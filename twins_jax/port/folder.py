"""Finds the one checkpoint in a folder: a snapshot, an Orbax folder, a training run, or weights of any name."""

import os
import re
from typing import NamedTuple

from twins_jax.errors import InputError
from twins_jax.port import formats, hub, orbax_io, shards

PARAMS, EMA, BATCH_STATS = "params", "ema", "batch_stats"
"""The items of a training checkpoint: parameters, their exponential moving average, and running statistics."""


class Checkpoint(NamedTuple):
    """A file or an Orbax folder of one tree.

    Attributes:
        path: of the file or folder.
        is_average: True if it holds nothing but the moving average of a training run.
        batch_stats: the Orbax folder of the running statistics, which a training run keeps beside it.
    """

    path: str
    is_average: bool = False
    batch_stats: str | None = None


def find_checkpoint(folder: str, *, ema: bool = False) -> Checkpoint:
    """Finds the file or Orbax folder to read.

    Args:
        folder: a snapshot of Hugging Face's; an Orbax folder of one tree; a checkpoint of several, of which the one
            with a model is taken; a folder of checkpoints by step (the newest complete one is taken), or the working
            directory of the run that wrote them; or a folder with exactly one checkpoint of any name.
        ema: take the moving average, where it is stored beside the parameters.

    Raises:
        InputError: the folder holds no checkpoint, or several with nothing to choose between them.
    """
    if snapshot := hub.find_weights(folder):
        return Checkpoint(snapshot)
    if orbax_io.is_params(folder):
        return _tree(folder)
    checkpoints = os.path.join(folder, "checkpoints")
    if os.path.isdir(checkpoints):
        return find_checkpoint(checkpoints, ema=ema)
    names = sorted(os.listdir(folder))
    files = _files(folder, names)
    for place in () if files else (folder, *_steps(folder, names)):
        if found := _find_tree(place, ema=ema):
            return found
    return _find_only(folder, names, files, ema=ema)


def _tree(folder: str, *, is_average: bool = False) -> Checkpoint:
    """Returns an Orbax folder of one tree, with the statistics beside it where it is an item of a training run."""
    parent, name = os.path.split(os.path.abspath(folder))
    stats = os.path.join(parent, BATCH_STATS)
    is_item = name in (PARAMS, EMA) and orbax_io.is_params(stats)
    return Checkpoint(folder, is_average, stats if is_item else None)


def _steps(folder: str, names: list[str]) -> list[str]:
    """Lists Orbax's checkpoints by step, the newest first; it names one so once it is complete.

    Names with a prefix count if all have the same and hold items, as a `CheckpointManager` with a `step_prefix` writes.
    """
    steps = {name: match for name in names if (match := re.fullmatch(r"(.*_)?(\d+)", name, re.ASCII))}
    steps = {name: match for name, match in steps.items() if not match[1] or _items(os.path.join(folder, name))}
    if len({match[1] for match in steps.values()}) > 1:
        return []
    return [os.path.join(folder, name) for name in sorted(steps, key=lambda name: -int(steps[name][2]))]


def _items(folder: str) -> list[str]:
    """Lists the trees that a checkpoint of several holds."""
    if not os.path.isdir(folder):
        return []
    return [name for name in sorted(os.listdir(folder)) if orbax_io.is_params(os.path.join(folder, name))]


def _find_tree(folder: str, *, ema: bool) -> Checkpoint | None:
    """Finds the tree with the model in a checkpoint; None where it holds no tree."""
    if orbax_io.is_params(folder):
        return Checkpoint(folder)
    items = _items(folder)
    if PARAMS in items:  # a run of this project, which stores the average as an item
        if ema and EMA not in items:
            raise InputError(f"{folder}: holds no moving average ({EMA!r}), but {', '.join(items)}")
        return _tree(os.path.join(folder, EMA if ema else PARAMS), is_average=ema)
    items = [name for name in items if orbax_io.holds_model(os.path.join(folder, name))] or items
    if len(items) > 1:
        raise _several(folder, items)
    return Checkpoint(os.path.join(folder, items[0])) if items else None


def _files(folder: str, names: list[str]) -> list[str]:
    """Lists the files of weights; an index stands for its parts."""
    paths = {name: os.path.join(folder, name) for name in names}
    files = [name for name in names if os.path.isfile(paths[name]) and formats.is_weights(paths[name])]
    if any(name.endswith(shards.SUFFIX) for name in files):
        return [name for name in files if not shards.is_part(name)]
    if files and all(map(shards.is_part, files)):
        raise InputError(f"{folder}: holds parts of weights such as {files[0]}, but no index (*{shards.SUFFIX})")
    return files


def _find_only(folder: str, names: list[str], files: list[str], *, ema: bool) -> Checkpoint:
    paths = {name: os.path.join(folder, name) for name in names}
    trees = [name for name in names if orbax_io.is_params(paths[name]) or _items(paths[name])]
    if len(files) + len(trees) > 1:
        raise _several(folder, sorted(files + trees))
    if files:
        return Checkpoint(paths[files[0]])
    if trees and (found := _find_tree(paths[trees[0]], ema=ema)):
        return found
    raise InputError(
        f"{folder}: no Orbax folder of parameters, no checkpoint with {EMA if ema else PARAMS!r} in it and no file of "
        f"weights: holds {', '.join(names[:5]) or 'nothing'}"
    )


def _several(folder: str, names: list[str]) -> InputError:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return InputError(f"{folder}: holds {len(names)} checkpoints: name one of them: {', '.join(names[:10])}{more}")
