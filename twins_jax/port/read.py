"""Reads weights from a source of any kind."""

import os
from typing import NamedTuple

from twins_jax.errors import InputError, one_line, require, shown
from twins_jax.port import hub, names, orbax_io, safetensors_io, torch_file, torch_io
from twins_jax.port.convert import NOTHING_DECLARED, Declared, Weights


class Choice(NamedTuple):
    """The weights that are wanted of a file with several; see `read_weights`."""

    ema: bool
    prefix: str | None
    head: str | None


def read_weights(
    source: str | os.PathLike[str], *, ema: bool = False, prefix: str | None = None, head: str | None = None
) -> Weights:
    """Reads weights of any layout.

    Args:
        source: a .safetensors file or one of `torch.save` (recognized by their first bytes, not by name); a snapshot
            folder of Hugging Face's, or "hf-hub:" and a repository's name; an Orbax folder of parameters; or a training
            run's working directory, its checkpoints or one of them.
        ema: take the exponential moving average of the weights, which training checkpoints hold beside them.

        prefix: what the names of the wanted tensors begin with in a file with several models, or the key of the dict
            that holds them.
        head: the name of the classifier's head in a file, where that is another than "head"; "none" leaves it out.

    Raises:
        InputError: the source is missing or cannot be read, holds no tensors, or several models.
    """
    source = os.fspath(source)
    choice = Choice(ema, prefix, head)
    if source.startswith(hub.PREFIX):
        path = hub.download(source)
        return _read_file(path, source, choice, hub.read_config(os.path.dirname(path)))
    if not os.path.isdir(source):
        return _read_file(source, source, choice)
    if weights := hub.find_weights(source):
        return _read_file(weights, weights, choice, hub.read_config(source))
    require("prefix", prefix, prefix is None, "None for an Orbax folder")
    require("head", head, head is None, "None for an Orbax folder")
    folder = orbax_io.find_params(source, ema=ema)
    return Weights(folder, "Orbax folder", orbax_io.read_params(folder))


def _read_file(path: str, label: str, choice: Choice, declared: Declared = NOTHING_DECLARED) -> Weights:
    try:
        with open(path, "rb") as file:
            first_bytes = file.read(torch_file.HEAD_BYTES)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or one_line(error)}") from error
    prefix = choice.prefix
    no_tensors: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    if torch_file.is_torch_file(first_bytes):
        tensors, key, no_tensors, unread = torch_io.read_torch(path, ema=choice.ema, container=prefix)
        container = f"torch file, under {shown(key)!r}" if key else "torch file"
        if key and prefix and key == prefix.rstrip("."):
            prefix = None
    elif safetensors_io.is_safetensors(first_bytes):
        if choice.ema:
            raise InputError(f"{path}: a .safetensors file holds one set of weights, and no moving average beside it")
        tensors, container = safetensors_io.read_safetensors(path), ".safetensors file"
    else:
        raise InputError(f"{path}: neither a .safetensors file nor one of torch.save, nor a folder of weights")
    if not tensors:
        raise InputError(f"{label}: holds no tensors")
    found = names.tidy_names(tensors, label, prefix=prefix, head=choice.head)
    if choice.head == names.NO_HEAD:
        declared = declared._replace(num_classes=None)
    return Weights(
        label,
        container,
        found.tensors,
        declared,
        prefix=found.prefix,
        left_out=found.left_out,
        ignored=(*no_tensors, *found.ignored),
        unread=unread,
        heads=found.heads,
    )
