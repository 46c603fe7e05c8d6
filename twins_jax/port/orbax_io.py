"""Reads and writes parameters as an Orbax folder."""

import os

import jax
import numpy as np
from flax import traverse_util

from twins_jax.errors import InputError
from twins_jax.functional import Params


def write_params(folder: str | os.PathLike[str], params: Params) -> None:
    """Writes parameters into a new Orbax folder, which appears only once it is complete.

    Args:
        folder: must not exist yet; Orbax writes beside it and renames.
        params: nested dicts of arrays, as `split_model` gives them.

    Raises:
        InputError: the folder exists.
    """
    import orbax.checkpoint as ocp

    folder = os.path.abspath(folder)
    if os.path.exists(folder):
        raise InputError(f"{folder}: exists already, and is not overwritten")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, params)


def read_params(folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the parameters of an Orbax folder as host arrays, whatever devices wrote them.

    Returns:
        path -> array, with paths such as "backbone/stages/0/peg/kernel".

    Raises:
        InputError: the folder is no Orbax checkpoint of arrays, or is damaged.
    """
    import orbax.checkpoint as ocp

    folder = os.path.abspath(folder)
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(folder).item_metadata.tree
            restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            params = checkpointer.restore(folder, restore_args=restore_args)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        # Orbax and TensorStore raise each of these for folders that are not, or no longer, whole checkpoints.
        detail = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(f"{folder}: not a readable Orbax folder of parameters: {detail}") from error
    return traverse_util.flatten_dict(params, sep="/")
