"""Reads weights from a source of any kind."""

import os

from twins_jax.errors import InputError
from twins_jax.paths import HUB_PREFIX, weights_source
from twins_jax.port import hub, msgpack_io, orbax_io, safetensors_io, shards, torch_io
from twins_jax.port.convert import NOTHING_DECLARED, Declared, Tensors, Weights
from twins_jax.port.declared import from_text, read_folder
from twins_jax.port.folder import find_checkpoint
from twins_jax.port.formats import Format, find_format
from twins_jax.port.state_names import select


def read_weights(source: str | os.PathLike[str], *, ema: bool = False) -> Weights:
    """Reads weights of any layout.

    Args:
        source: a .safetensors file, one of `torch.save` or of `flax.serialization`, or the index of sharded ones
            (recognized by their first bytes, not by name); "hf-hub:" and a repository's name; an Orbax folder of a
            model's parameters or state; or a folder with one of these in it, as `twins_jax.port.folder` finds it, such
            as a snapshot of Hugging Face's or a training run's working directory.
        ema: take the exponential moving average of the weights, which training checkpoints hold beside them.

    Raises:
        InputError: the source is missing or cannot be read, or holds no tensors.
    """
    source = weights_source("source", source)
    if source.startswith(HUB_PREFIX):
        path = hub.download(source)
        return _read_file(path, source, ema, hub.read_config(os.path.dirname(path)))
    if not os.path.isdir(source):
        return _read_file(source, source, ema)
    path, is_average = find_checkpoint(source, ema=ema)
    if os.path.isfile(path):
        return _read_file(path, path, ema, hub.read_config(source))
    tensors, note = orbax_io.read_params(path, ema=ema and not is_average)
    return Weights(path, f"Orbax folder{note}", tensors, read_folder(path))


def _read_file(path: str, label: str, ema: bool, declared: Declared = NOTHING_DECLARED) -> Weights:
    found = find_format(path)
    tensors, container = _read_tensors(path, found, ema)
    if found is Format.SAFETENSORS:
        declared = declared.or_else(from_text(safetensors_io.read_metadata(path), f"{path}: metadata"))
    if not tensors:
        raise InputError(f"{label}: holds no tensors")
    if all(name.startswith("module.") for name in tensors):  # DistributedDataParallel's
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return Weights(label, container, tensors, declared)


def _read_tensors(path: str, found: Format, ema: bool) -> tuple[Tensors, str]:
    """Returns the tensors of a file, and the place in it that held them."""
    if found is Format.TORCH:
        tensors, key = torch_io.read_torch(path, ema=ema)
        return tensors, f"torch file, under {key!r}" if key else "torch file"
    if found is Format.MSGPACK:
        tensors, note = msgpack_io.read_msgpack(path, ema=ema)
        return tensors, found.value + note
    tensors = shards.read_shards(path, _read_shard) if found is Format.INDEX else safetensors_io.read_safetensors(path)
    chosen = select(tensors, path, ema=ema)
    return {ours: tensors[name] for name, ours in chosen.paths.items()}, found.value + chosen.note


def _read_shard(path: str) -> Tensors:
    if (found := find_format(path)) is Format.TORCH:
        return torch_io.read_torch(path).tensors
    if found is not Format.SAFETENSORS:
        raise InputError(f"{path}: must be a .safetensors file or one of torch.save, as a part of sharded weights")
    return safetensors_io.read_safetensors(path)
