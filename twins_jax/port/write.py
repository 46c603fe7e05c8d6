"""Ports one file or folder to another: the library behind `port_weights.py`."""

import os
from collections.abc import Callable
from typing import NamedTuple

from twins_jax.errors import InputError, did_you_mean
from twins_jax.files import staged, write_text
from twins_jax.port.convert import Ported, Tensors, Weights, to_layout
from twins_jax.port.declared import CONFIG_FILE, to_text
from twins_jax.port.orbax_io import is_params, write_params
from twins_jax.port.rules import Layout
from twins_jax.port.safetensors_io import write_safetensors
from twins_jax.port.torch_io import write_torch

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".pth.tar")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
"""Endings of the files that are written; all other targets are Orbax folders."""

OTHER_SUFFIXES = (
    *(".msgpack", ".npz", ".npy", ".h5", ".hdf5", ".keras", ".pkl", ".pickle", ".onnx", ".gguf", ".pb", ".tflite"),
    *(".json", ".zip", ".tar", ".gz", ".tgz", ".txt"),
)
"""Endings of files that are not written: a target with one of them is not meant to be a folder."""


class Target(NamedTuple):
    """The kind of file or folder to write: the layout of its names, and the function that writes it."""

    label: str
    layout: Layout
    write: Callable[[str, Tensors], None]


def plan_target(source: Weights, ported: Ported, target: str) -> Target:
    """Chooses the kind of file or folder to write, from the source's layout and the target's name.

    What is declared of the source travels with the weights, but not into files of `torch.save`.

    Raises:
        InputError: target and source are both PyTorch files.
    """
    ours, theirs = ported.model.kind.ours, ported.model.kind.theirs
    name = target.lower()
    about = to_text(source.declared, ported.model)
    if name.endswith(".safetensors"):
        layout = ours if source.layout.is_torch else theirs
        framework = "pt" if layout.is_torch else "jax"
        return Target(
            ".safetensors file",
            layout,
            lambda path, tensors: write_safetensors(path, tensors, framework=framework, about=about),
        )
    if name.endswith(TORCH_SUFFIXES):
        if source.layout.is_torch:
            raise InputError(
                f"{target}: must be an Orbax folder, or .safetensors of twins_jax's names: the source holds PyTorch's "
                f"names already"
            )
        return Target("torch file", theirs, write_torch)

    def write_folder(path: str, tensors: Tensors) -> None:
        write_params(path, tensors)
        if about:  # beside Orbax's own files, which it alone reads
            write_text(os.path.join(path, CONFIG_FILE), about + "\n")

    return Target("Orbax folder", ours, write_folder)


def write_target(ported: Ported, kind: Target, target: str, *, overwrite: bool = False) -> None:
    """Writes parameters, which appear at the target complete or not at all.

    `ported.params` is emptied: each tensor is released once it is converted. Memory then never holds two whole copies,
    unless the caller keeps another reference to them (such as the `Weights`).

    Raises:
        InputError: the target exists and `overwrite` is not set, or cannot be written.
    """
    check_target(target, overwrite=overwrite)
    with staged(target) as path:
        tensors = to_layout(ported.params, kind.layout)
        ported.params.clear()
        kind.write(path, tensors)


def check_paths(source: str, target: str, *others: str, overwrite: bool) -> None:
    """Raises InputError, before any work is done, where one of the paths to be written cannot be or is another one."""
    _check_suffix(target)
    seen = [os.path.realpath(source)]
    for path in (target, *others):
        if os.path.realpath(path) in seen:
            raise InputError(f"{path}: is given twice, and would be overwritten")
        seen.append(os.path.realpath(path))
        check_target(path, overwrite=overwrite)


def _check_suffix(target: str) -> None:
    """Raises InputError for the ending of a file of another kind, or for one that is mistyped."""
    suffix = os.path.splitext(target)[1].lower()
    meant = did_you_mean(suffix, SUFFIXES) if suffix else ""
    if not target.lower().endswith(SUFFIXES) and (suffix in OTHER_SUFFIXES or meant):
        raise InputError(
            f"{target}: must end in one of {', '.join(SUFFIXES)}, or be the name of an Orbax folder{meant}"
        )


def check_target(target: str, *, overwrite: bool) -> None:
    """Raises InputError where a target cannot be written, before any work is done for it.

    With `overwrite` files and Orbax folders of parameters may exist; no other folder is ever replaced.
    """
    parent = os.path.dirname(os.path.abspath(target))
    if not os.path.isdir(parent):
        raise InputError(f"{target}: its folder {parent} does not exist")
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise InputError(f"{target}: exists already, and is only overwritten with --overwrite (overwrite=True)")
    if os.path.isdir(target) and not is_params(target):
        raise InputError(f"{target}: is a folder that is no Orbax folder of parameters, and is never overwritten")
