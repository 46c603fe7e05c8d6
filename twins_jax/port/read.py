"""Reads weights from a source of any kind."""

import errno
import os
from typing import NamedTuple

from twins_jax.errors import InputError, did_you_mean, require, shown
from twins_jax.paths import HUB_PREFIX, weights_source
from twins_jax.port import hub, msgpack_io, names, orbax_io, safetensors_io, shards, torch_io
from twins_jax.port.convert import NOTHING_DECLARED, Declared, Tensors, Weights
from twins_jax.port.declared import from_text, read_folder
from twins_jax.port.folder import find_checkpoint
from twins_jax.port.formats import Format, find_format
from twins_jax.port.infer import KINDS
from twins_jax.port.state_names import select
from twins_jax.port.torch_io import Contents
from twins_jax.published import PUBLISHED


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
        source: a .safetensors file, one of `torch.save` or of `flax.serialization`, or the index of sharded ones
            (recognized by their first bytes, not by name); "hf-hub:" and a repository's name, or the name of a variant
            with published weights; an Orbax folder of a model's parameters or state; or a folder with one of these in
            it, as `twins_jax.port.folder` finds it, such as a snapshot of Hugging Face's or a training run's working
            directory.
        ema: take the exponential moving average of the weights, which training checkpoints hold beside them.
        prefix: what the names of the wanted tensors begin with in a file with several models, or the key of the dict
            that holds them.
        head: the name of the classifier's head in a file, where that is another than "head"; "none" leaves it out.

    Raises:
        InputError: the source is missing or cannot be read, holds no tensors, or several models.
    """
    source = weights_source("source", source)
    choice = Choice(ema, prefix, head)
    if source.startswith(HUB_PREFIX):
        path = hub.download(source)
        return _read_file(path, source, choice, hub.read_config(os.path.dirname(path)))
    if not os.path.lexists(source):
        raise InputError(f"{source}: {os.strerror(errno.ENOENT)}{_meant(source)}")
    if not os.path.isdir(source):
        return _read_file(source, source, choice)
    path, is_average, batch_stats = find_checkpoint(source, ema=ema)
    if os.path.isfile(path):
        return _read_file(path, path, choice, hub.read_config(source))
    require("head", head, head is None, "None for an Orbax folder")
    tensors, note = orbax_io.read_params(path, ema=ema and not is_average, prefix=prefix)
    if batch_stats is not None:
        tensors |= orbax_io.read_params(batch_stats)[0]
    return Weights(path, f"Orbax folder{note}", tensors, read_folder(path))


def _meant(source: str) -> str:
    """Returns advice on a path that leads nowhere, to end an error message; "" if there is none."""
    folder, _, name = source.partition("/")
    if folder and name and "/" not in name and not os.path.isdir(folder):
        return f"; a repository of Hugging Face is {HUB_PREFIX}{source}"
    return did_you_mean(source, list(PUBLISHED))


def _read_file(path: str, label: str, choice: Choice, declared: Declared = NOTHING_DECLARED) -> Weights:
    found = find_format(path)
    contents, note = _read_contents(path, found, choice)
    if found is Format.SAFETENSORS:
        declared = declared.or_else(from_text(safetensors_io.read_metadata(path), f"{path}: metadata"))
    if not contents.tensors:
        raise InputError(f"{label}: holds no tensors")
    # What chose the dict does not choose among its names, too.
    is_chosen = choice.prefix and contents.container == choice.prefix.rstrip(".")
    prefix = None if is_chosen or not names.count_by_prefix(contents.tensors) else choice.prefix
    tidy = names.tidy_names(
        contents.tensors, label, prefix=prefix, head=choice.head, ema=choice.ema and not contents.is_average
    )
    if contents.class_names and len(contents.class_names) in _dense_classes(tidy.tensors):
        declared = declared.or_else(Declared(class_names=contents.class_names))
    if choice.head == names.NO_HEAD:
        declared = declared._replace(num_classes=None, class_names=None, multi_label=None)
    return Weights(
        label,
        found.value + note,
        tidy.tensors,
        declared,
        prefix=tidy.prefix,
        left_out=tidy.left_out,
        ignored=(*contents.ignored, *tidy.ignored),
        unread=contents.unread,
        heads=tidy.heads,
        whole_heads=tidy.whole_heads,
        wrappers=tidy.wrappers,
    )


def _dense_classes(tensors: Tensors) -> set[int]:
    """Returns the numbers of classes that heads of dense tasks have: a record of class names is of them."""
    found = set()
    for kind in KINDS.values():
        for module in kind.classifiers if kind.mark else ():
            row = kind.theirs.to_theirs(f"{module.path}/bias")
            bias = tensors.get(row.name) if row else None
            if bias is not None and bias.ndim:
                found.add(module.num_classes(bias.shape[0]))
    return found


def _read_contents(path: str, found: Format, choice: Choice) -> tuple[Contents, str]:
    """Returns the tensors of a file that are wanted, and for people the place in the file that held them."""
    if found is Format.TORCH:
        contents = torch_io.read_torch(path, ema=choice.ema, container=choice.prefix)
        return contents, f", under {shown(contents.container)!r}" if contents.container else ""
    if found is Format.MSGPACK:
        tensors, note = msgpack_io.read_msgpack(path, ema=choice.ema, prefix=choice.prefix)
        return Contents(tensors, "", (), (), choice.ema), note
    every = shards.read_shards(path, _read_shard) if found is Format.INDEX else safetensors_io.read_safetensors(path)
    ema = choice.ema and not names.count_by_prefix(every)  # `tidy_names` chooses among names of PyTorch's
    chosen = select(every, path, ema=ema, prefix=choice.prefix)
    return Contents({ours: every[name] for name, ours in chosen.paths.items()}, "", (), (), ema), chosen.note


def _read_shard(path: str) -> Tensors:
    if (found := find_format(path)) is Format.TORCH:
        return torch_io.read_torch(path).tensors
    if found is not Format.SAFETENSORS:
        raise InputError(f"{path}: must be a .safetensors file or one of torch.save, as a part of sharded weights")
    return safetensors_io.read_safetensors(path)
