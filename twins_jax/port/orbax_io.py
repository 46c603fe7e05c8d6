"""Reads and writes parameters as Orbax folders, a training run's checkpoints included."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from twins_jax.errors import InputError, one_line
from twins_jax.port.convert import Tensors

PARAMS, EMA = "params", "ema"
"""The items of a training checkpoint: the parameters, and their exponential moving average."""


def checksum(tree: Any, xp: ModuleType) -> Any:
    """uint32 [] of all bits of a tree of 4-byte numbers; Orbax's files have none, and a wrong bit would go unseen.

    Integer sums are exact in any order, whatever the layout over devices; odd weights let no change of a single number
    vanish.

    Args:
        tree: of numpy arrays, or of JAX's.
        xp: numpy or jax.numpy, to compute with.
    """

    def weighted_sum(words: Any) -> Any:
        return (words * (2 * xp.arange(words.size, dtype=xp.uint32) + 1).reshape(words.shape)).sum(dtype=xp.uint32)

    return weighted_sum(xp.stack([weighted_sum(leaf.view(xp.uint32)) for leaf in jax.tree.leaves(tree)]))


def write_params(folder: str, params: Tensors) -> None:
    """Writes parameters into a new Orbax folder, which `StandardCheckpointer` reads like those of a model.

    Args:
        folder: must not exist yet.
        params: path -> array; emptied.
    """
    import orbax.checkpoint as ocp

    # Orbax copies numpy arrays before it writes them, but not JAX's, and holds all that it has compressed until the
    # end, which is one copy more for a few percent of disk space. Without x64 JAX would round float64.
    with jax.enable_x64(True):
        arrays = {path: jnp.array(params.pop(path)) for path in list(params)}
    with _quiet(), ocp.PyTreeCheckpointer(use_compression=False) as checkpointer:
        checkpointer.save(os.path.abspath(folder), traverse_util.unflatten_dict(arrays, sep="/"))


def read_params(folder: str) -> Tensors:
    """Reads the parameters of an Orbax folder as host arrays, whatever devices wrote them.

    Returns:
        path -> array, with paths such as "backbone/stages/0/peg/kernel".

    Raises:
        InputError: the folder is no Orbax checkpoint of arrays, or is damaged (of changed values only training
            checkpoints can tell).
    """
    import orbax.checkpoint as ocp

    folder = os.path.abspath(folder)
    try:
        with _quiet(), ocp.PyTreeCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(folder).item_metadata
            if metadata is None:
                raise ValueError("its metadata is damaged")
            tree = metadata.tree
            restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            params = traverse_util.flatten_dict(checkpointer.restore(folder, restore_args=restore_args), sep="/")
    except Exception as error:  # Orbax and TensorStore raise many kinds for folders that are not whole checkpoints
        raise InputError(f"{folder}: not a readable Orbax folder of parameters: {one_line(error)}") from error
    others = [path for path, leaf in params.items() if not isinstance(leaf, np.ndarray)]
    if others or not params:
        raise InputError(f"{folder}: holds more than arrays, or none: {', '.join(others[:5])}")
    saved = _saved_checksum(folder)
    if saved is not None and saved != int(checksum(traverse_util.unflatten_dict(params, sep="/"), np)):
        raise InputError(f"{folder}: damaged: its values are not those that training saved")
    return params


def _saved_checksum(folder: str) -> int | None:
    """Returns the checksum that `train.checkpoint` notes in a training checkpoint's metadata; None in other folders."""
    checkpoint, item = os.path.split(folder)
    try:
        with open(os.path.join(checkpoint, "_CHECKPOINT_METADATA")) as file:
            metadata = json.load(file)
        found: int | None = metadata["custom_metadata"]["checksums"].get(item)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found


def find_params(folder: str, *, ema: bool = False) -> str:
    """Finds the Orbax folder of parameters in a training run's folder.

    Args:
        folder: an Orbax folder of parameters; or a checkpoint, a folder of checkpoints (the newest complete one is
            taken), or the run's working directory.
        ema: take the moving average.

    Raises:
        InputError: the folder holds none.
    """
    if is_params(folder):
        if ema:
            raise InputError(f"{folder}: is one tree of parameters, which has no moving average beside it")
        return folder
    item = EMA if ema else PARAMS
    checkpoints = os.path.join(folder, "checkpoints")
    if os.path.isdir(checkpoints):
        return find_params(checkpoints, ema=ema)
    names = os.listdir(folder)
    # Orbax gives a checkpoint its number as its name once it is complete.
    steps = sorted((int(name) for name in names if name.isascii() and name.isdigit()), reverse=True)
    for place in [folder, *(os.path.join(folder, str(step)) for step in steps)]:
        if is_params(os.path.join(place, item)):
            return os.path.join(place, item)
    holds = ", ".join(sorted(names)[:5]) or "nothing"
    raise InputError(f"{folder}: no Orbax folder of parameters, and no checkpoint with {item!r} in it: holds {holds}")


def is_params(folder: str) -> bool:
    """True if a folder is one tree that Orbax wrote."""
    return os.path.isfile(os.path.join(folder, "_METADATA"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what Orbax logs beside its exceptions, and warnings of items of checkpoints without own metadata."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
