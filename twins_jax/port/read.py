"""Reads weights from a source of any kind."""

import os

from twins_jax.errors import InputError, one_line
from twins_jax.port import hub, orbax_io, safetensors_io, torch_io
from twins_jax.port.convert import NOTHING_DECLARED, Declared, Weights
from twins_jax.port.declared import from_text, read_folder


def read_weights(source: str | os.PathLike[str], *, ema: bool = False) -> Weights:
    """Reads weights of any layout.

    Args:
        source: a .safetensors file or one of `torch.save` (recognized by their first bytes, not by name); a snapshot
            folder of Hugging Face's, or "hf-hub:" and a repository's name; an Orbax folder of parameters; or a training
            run's working directory, its checkpoints or one of them.
        ema: take the exponential moving average of the weights, which training checkpoints hold beside them.

    Raises:
        InputError: the source is missing or cannot be read, or holds no tensors.
    """
    source = os.fspath(source)
    if source.startswith(hub.PREFIX):
        path = hub.download(source)
        return _read_file(path, source, ema, hub.read_config(os.path.dirname(path)))
    if not os.path.isdir(source):
        return _read_file(source, source, ema)
    if weights := hub.find_weights(source):
        return _read_file(weights, weights, ema, hub.read_config(source))
    folder = orbax_io.find_params(source, ema=ema)
    return Weights(folder, "Orbax folder", orbax_io.read_params(folder), read_folder(folder))


def _read_file(path: str, label: str, ema: bool, declared: Declared = NOTHING_DECLARED) -> Weights:
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or one_line(error)}") from error
    if head.startswith((torch_io.ZIP_MAGIC, torch_io.PICKLE_MAGIC)):
        tensors, key = torch_io.read_torch(path, ema=ema)
        container = f"torch file, under {key!r}" if key else "torch file"
    elif safetensors_io.is_safetensors(head):
        if ema:
            raise InputError(f"{path}: a .safetensors file holds one set of weights, and no moving average beside it")
        tensors, container = safetensors_io.read_safetensors(path), ".safetensors file"
        declared = declared.or_else(from_text(safetensors_io.read_metadata(path), f"{path}: metadata"))
    else:
        raise InputError(f"{path}: neither a .safetensors file nor one of torch.save, nor a folder of weights")
    if not tensors:
        raise InputError(f"{label}: holds no tensors")
    if all(name.startswith("module.") for name in tensors):  # DistributedDataParallel's
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return Weights(label, container, tensors, declared)
