"""Reads and writes files of torch's own format, tensors only: nothing in them is ever run."""

import argparse
import contextlib
import io
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from twins_jax.errors import InputError, one_line
from twins_jax.port.convert import Tensors

CONTAINERS = ("model", "state_dict", "model_ema", "state_dict_ema")
"""The keys under which training scripts (upstream's, timm's, OpenMMLab's) store state dicts, tried in this order."""

EMA_CONTAINERS = ("model_ema", "state_dict_ema")
"""Those of them that hold the exponential moving average of the weights."""

ZIP_MAGIC = b"PK\x03\x04"  # torch.save since 1.6
PICKLE_MAGIC = b"\x80"  # torch.save before: pickles in sequence


class Contents(NamedTuple):
    """A state dict as numpy arrays, and the key it was found under ("" for the whole file)."""

    tensors: Tensors
    container: str


def read_torch(path: str, *, ema: bool = False) -> Contents:
    """Reads the tensors of a file that `torch.save` wrote.

    Args:
        path: an existing file that holds a state dict, or a dict that holds one under one of `CONTAINERS`.
        ema: take the one under `EMA_CONTAINERS`.

    Returns:
        Arrays in the file's dtypes (bfloat16 as ml_dtypes has it).

    Raises:
        InputError: the file is damaged, not a checkpoint, or holds more than tensors and plain values, which loading
            would have to run; or torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: torch is needed to read this format; install it (the extra `torch`); .safetensors need none"
        ) from error
    with open(path, "rb") as file:
        is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    if is_zip:
        _check_zip(path)
    try:
        # Training scripts store their parsed arguments beside the weights; a Namespace runs nothing when loaded.
        # torch is given no path: it takes names that end in .safetensors for that format, whatever they hold.
        with (
            open(path, "rb") as file,
            warnings.catch_warnings(),
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            warnings.simplefilter("ignore")  # what torch warns of (pickle protocols) it also refuses
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises depends on the bytes
        if refused := _refused_globals(path, is_zip):
            raise InputError(
                f"{path}: refused, loading it would run code: only tensors and plain values are allowed, "
                f"found {', '.join(refused)}"
            ) from error
        raise InputError(f"{path}: not a readable torch checkpoint: {one_line(error)}") from error
    return _find_state_dict(loaded, path, ema)


def write_torch(path: str, tensors: Tensors) -> None:
    """Writes arrays, and empties their dict, as a plain state dict of contiguous tensors with `torch.save`."""
    import torch

    torch.save({name: to_torch(np.ascontiguousarray(tensors.pop(name))) for name in list(tensors)}, path)


def _check_zip(path: str) -> None:
    """Compares every byte with the archive's checksums: torch does not."""
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.serialization.set_crc32_options(False) writes 0 for every checksum.
            has_checksums = any(member.CRC for member in archive.infolist())
            damaged = archive.testzip() if has_checksums else None
    except Exception as error:  # zipfile and the decompressors raise many kinds, which depend on the bytes
        raise InputError(f"{path}: damaged or truncated torch checkpoint: {one_line(error)}") from error
    if damaged is not None:
        raise InputError(f"{path}: damaged torch checkpoint: {damaged!r} does not match its checksum")


ALLOWED_MODULES = ("torch", "collections", "argparse")
"""Modules of which torch's restricted unpickler allows some names."""


def _refused_globals(path: str, is_zip: bool) -> list[str]:
    """Lists the names that a file's pickles would import beyond those that checkpoints need, without running them."""
    try:
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                pickles = [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
        else:
            with open(path, "rb") as file:
                pickles = [file.read()]
    except Exception:  # then the imports are not the fault of the file
        return []
    found: dict[str, None] = {}
    for data in pickles:
        stream = io.BytesIO(data)
        with contextlib.suppress(Exception), warnings.catch_warnings():  # the end of the pickles, or damage
            warnings.simplefilter("ignore")
            while stream.tell() < len(data):  # the old format has several in sequence
                found |= dict.fromkeys(_globals(stream))
    return [name for name in found if name.partition(".")[0] not in ALLOWED_MODULES]


def _globals(stream: io.BytesIO) -> list[str]:
    names, strings = [], ["", ""]
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            names.append(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            names.append(".".join(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)
    return names


def _find_state_dict(loaded: Any, path: str, ema: bool) -> Contents:
    import torch

    container = ""
    if isinstance(loaded, Mapping):
        for key in EMA_CONTAINERS if ema else CONTAINERS:
            if isinstance(loaded.get(key), Mapping):
                container, loaded = key, loaded[key]
                break
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path}: holds a {type(loaded).__name__}: must hold a state dict, or one under {CONTAINERS}")
    if ema and not container:
        raise InputError(f"{path}: has no {' or '.join(EMA_CONTAINERS)}, only {', '.join(map(repr, list(loaded)[:5]))}")
    others = [repr(name) for name, value in loaded.items() if not (isinstance(name, str) and _is_tensor(value))]
    if others:
        raise InputError(
            f"{path}: holds more than the tensors of a state dict, such as {', '.join(others[:5])}: must hold a state "
            f"dict, or one under {CONTAINERS}"
        )
    tensors = {}
    for name, tensor in loaded.items():
        try:
            tensors[name] = _to_numpy(tensor.detach(), torch.bfloat16)
        except (RuntimeError, TypeError) as error:
            raise InputError(f"{path}: {name} is no plain tensor: {one_line(error)}") from error
    return Contents(tensors, container)


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _to_numpy(tensor: Any, bfloat16: Any) -> np.ndarray:
    import torch

    if tensor.dtype == bfloat16:  # numpy has no bfloat16 of its own: hand the bits over
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def to_torch(array: np.ndarray) -> Any:
    """A tensor that shares an array's memory, bfloat16 included."""
    import torch

    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
