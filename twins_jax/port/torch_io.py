"""Reads PyTorch state dicts from .safetensors (without torch) and from torch's own files (tensors only, no code)."""

import argparse
import os
import pickle
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from twins_jax.errors import InputError

StateDict = dict[str, np.ndarray]

CONTAINERS = ("model", "state_dict", "model_ema")
"""The keys under which upstream's training scripts and others store a state dict, tried in this order."""


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Reads the tensors of a PyTorch checkpoint.

    Args:
        path: a .safetensors file, or a file that `torch.save` wrote (.pth, .pt, .bin): a state dict, or a dict that
            holds one under one of `CONTAINERS`. The prefix that DistributedDataParallel puts before every name,
            `module.`, is taken off.

    Returns:
        name -> array, in the file's dtypes (bfloat16 as ml_dtypes has it).

    Raises:
        InputError: the file is missing, damaged, not a checkpoint, or holds more than tensors and plain values, which
            loading would have to execute; or it is torch's own format and torch is not installed.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file")
    tensors = _read_safetensors(path) if path.endswith(".safetensors") else _read_torch(path)
    if not tensors:
        raise InputError(f"{path}: holds no tensors")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _read_safetensors(path: str) -> StateDict:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no dict
    except SafetensorError as error:
        raise InputError(f"{path}: not a readable .safetensors file: {error}") from error


def _read_torch(path: str) -> StateDict:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: torch is needed to read this format (pip install 'twins-jax[torch]'); .safetensors need none"
        ) from error
    try:
        # Training scripts store their parsed arguments beside the weights; a Namespace runs nothing when loaded.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        detail = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), "not a torch checkpoint")
        raise InputError(f"{path}: refused, only tensors and plain values are loaded: {detail}") from error
    except (RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError, OSError) as error:
        # What torch raises on bytes that are no checkpoint depends on the bytes.
        detail = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(f"{path}: not a readable torch checkpoint: {detail}") from error
    return {name: _to_numpy(tensor) for name, tensor in _find_tensors(loaded, path).items()}


def _find_tensors(loaded: Any, path: str) -> Mapping[str, Any]:
    import torch

    if isinstance(loaded, Mapping):
        for key in CONTAINERS:
            if isinstance(loaded.get(key), Mapping):
                loaded = loaded[key]
                break
    if not isinstance(loaded, Mapping):
        raise InputError(
            f"{path}: holds a {type(loaded).__name__}, allowed is a state dict, plain or under {CONTAINERS}"
        )
    others = [str(name) for name, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise InputError(f"{path}: a state dict holds tensors only, found also {', '.join(others[:5])}")
    return loaded


def _to_numpy(tensor: Any) -> np.ndarray:
    import torch

    if tensor.dtype == torch.bfloat16:  # numpy has no bfloat16 of its own: hand the bits over
        return tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
