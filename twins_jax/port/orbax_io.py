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
from jax.tree_util import keystr, tree_flatten_with_path, tree_map_with_path

from twins_jax.errors import InputError, one_line
from twins_jax.port.convert import Tensors
from twins_jax.port.state_names import find_models, select


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


def read_params(folder: str, *, ema: bool = False, prefix: str | None = None) -> tuple[Tensors, str]:
    """Reads a model's parameters in an Orbax folder as host arrays, whatever devices wrote them.

    Args:
        folder: one tree that Orbax wrote: of parameters, or of a state with a model in it, which alone is read.
        ema: take the moving average of the parameters.
        prefix: the place of the model that is wanted, of several.

    Returns:
        path -> array, with paths such as "backbone/stages/0/peg/kernel"; and the note of
        `twins_jax.port.state_names.select`.

    Raises:
        InputError: the folder is no Orbax checkpoint of arrays, or is damaged (of changed values only training
            checkpoints can tell).
    """
    import orbax.checkpoint as ocp

    folder = os.path.abspath(folder)
    with _readable(folder), ocp.PyTreeCheckpointer() as checkpointer:
        tree = _metadata(checkpointer, folder)
        chosen = select(_named(tree), folder, ema=ema, prefix=prefix)
        # Orbax skips the placeholders.
        item = tree_map_with_path(lambda path, leaf: leaf if _name(path) in chosen.paths else ocp.PLACEHOLDER, tree)
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        restored = _named(checkpointer.restore(folder, item=item, restore_args=restore_args))
    params = {ours: restored[name] for name, ours in chosen.paths.items()}
    others = [path for path, leaf in params.items() if not isinstance(leaf, np.ndarray)]
    if others or not params:
        raise InputError(f"{folder}: holds more than arrays, or none: {', '.join(others[:5])}")
    saved = _saved_checksum(folder)
    if saved is not None and saved != int(checksum(traverse_util.unflatten_dict(params, sep="/"), np)):
        raise InputError(f"{folder}: damaged: its values are not those that training saved")
    return params, chosen.note


def holds_model(folder: str) -> bool:
    """True if one of the places in an Orbax tree holds a model; False for a damaged one, too."""
    import orbax.checkpoint as ocp

    try:
        with _readable(folder), ocp.PyTreeCheckpointer() as checkpointer:
            return bool(find_models(_named(_metadata(checkpointer, folder))))
    except InputError:
        return False


def is_params(folder: str) -> bool:
    """True if a folder is one tree that Orbax wrote."""
    return os.path.isfile(os.path.join(folder, "_METADATA"))


def _metadata(checkpointer: Any, folder: str) -> Any:
    metadata = checkpointer.metadata(folder).item_metadata
    if metadata is None:
        raise ValueError("its metadata is damaged")
    return metadata.tree


def _named(tree: Any) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in tree_flatten_with_path(tree)[0]}


def _name(path: Any) -> str:
    return keystr(path, simple=True, separator="/")


def _saved_checksum(folder: str) -> int | None:
    """Returns the checksum that `train.checkpoint` notes in a training checkpoint's metadata; None in other folders."""
    checkpoint, item = os.path.split(folder)
    try:
        with open(os.path.join(checkpoint, "_CHECKPOINT_METADATA")) as file:
            metadata = json.load(file)
        found: int | None = metadata["custom_metadata"]["checksums"].get(item)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return found


@contextlib.contextmanager
def _readable(folder: str) -> Iterator[None]:
    """Raises InputError for all that Orbax and TensorStore raise for folders that are not whole checkpoints."""
    try:
        with _quiet():
            yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{folder}: not a readable Orbax folder of parameters: {one_line(error)}") from error


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
