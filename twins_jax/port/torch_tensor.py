"""Tensors as pickles of torch describe them, and the numpy arrays that they become."""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from twins_jax.port.torch_file import Storage, TorchFile, element_size
from twins_jax.port.unpickle import Functions, Placeholder

DTYPES = {
    "torch.DoubleStorage": np.float64,
    "torch.FloatStorage": np.float32,
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": ml_dtypes.bfloat16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
    "torch.ComplexFloatStorage": np.complex64,
    "torch.ComplexDoubleStorage": np.complex128,
    # Tensors of the dtypes that follow refer to an untyped storage, and name their dtype themselves.
    "torch.uint16": np.uint16,
    "torch.uint32": np.uint32,
    "torch.uint64": np.uint64,
    "torch.float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "torch.float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "torch.float8_e5m2": ml_dtypes.float8_e5m2,
    "torch.float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "torch.float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
}
"""The name of torch's class of storage, or of its dtype -> numpy's."""


class Tensor(NamedTuple):
    """A tensor as a pickle describes it, with nothing checked yet.

    Attributes:
        storage: a `Storage`.
        dtype: a key of `DTYPES`.
        start: the element of the storage at index 0, 0...
        shape: in elements.
        strides: in elements.
        marks: further properties, such as a lazy conjugation; None or empty for a plain tensor.
    """

    storage: Any
    dtype: Any
    start: Any
    shape: Any
    strides: Any
    marks: Any = None


def _tensor(storage: Any, start: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    marks = rest[2] if len(rest) > 2 else None  # behind requires_grad and hooks
    return Tensor(storage, getattr(storage, "kind", None), start, shape, strides, marks)


def _tensor_with_dtype(
    storage: Any, start: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, marks: Any = None
) -> Tensor:
    return Tensor(storage, getattr(dtype, "name", None), start, shape, strides, marks)


def _from_type(function: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    """A tensor with attributes, or of a subclass."""
    if isinstance(function, Placeholder) and function.name in REBUILDERS and isinstance(arguments, tuple):
        return REBUILDERS[function.name](*arguments)
    return Placeholder(function.name if isinstance(function, Placeholder) else "torch.Tensor")


def _first(value: Any, *_: Any) -> Any:
    return value


REBUILDERS: Functions = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_with_dtype,
}
"""The functions by which pickles describe tensors -> ours."""

FUNCTIONS: Functions = {
    **REBUILDERS,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch.Size": _first,
}
"""A function that pickles name -> our own, called in its place."""

HARMLESS = (
    "torch.device",
    "torch.serialization._get_layout",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
)
DTYPE_NAMES = ("bool", "float", "bfloat", "int", "uint", "complex", "qint", "quint", "half", "double", "long", "short")


def is_known(name: str) -> bool:
    """True for what every checkpoint names: the parts of tensors, which this file understands."""
    module, _, last = name.rpartition(".")
    is_storage = module in ("torch", "torch.storage") and last.endswith("Storage")
    return name in FUNCTIONS or name in HARMLESS or is_storage or (module == "torch" and last.startswith(DTYPE_NAMES))


class NoPlainTensorError(ValueError):
    """A tensor that is no dense array of a known dtype within its storage."""


def to_numpy(file: TorchFile, tensor: Tensor, storages: dict[str, np.ndarray]) -> np.ndarray:
    """The array of a tensor, in the file's dtype; a view where several tensors share a storage.

    Args:
        file: the tensor's.
        tensor: the description.
        storages: key -> bytes, of the storages that were read before; receives this tensor's.

    Raises:
        NoPlainTensorError: it is of another kind, or reaches beyond its storage.
    """
    storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
    dtype = np.dtype(DTYPES[tensor.dtype]) if isinstance(tensor.dtype, str) and tensor.dtype in DTYPES else None
    if not isinstance(storage, Storage) or dtype is None:
        kind = tensor.dtype if isinstance(tensor.dtype, str) else type(storage).__name__
        raise NoPlainTensorError(f"is of {kind[:80]}")
    if tensor.marks:
        raise NoPlainTensorError("is a lazy view")
    if not (_are_sizes(shape) and _are_sizes(strides) and len(shape) == len(strides) and _are_sizes((tensor.start,))):
        raise NoPlainTensorError("has no sizes and strides")
    size = storage.size * element_size(storage.kind) // dtype.itemsize
    count = 1
    for length in shape:
        count *= length
    last = tensor.start + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    # An expanded tensor repeats elements with strides of 0: of one element it could make terabytes.
    if count and (last >= size or count > size):
        raise NoPlainTensorError(f"has {'more elements than' if count > size else 'elements beyond'} its storage")
    if storage.key not in file.spans:
        raise NoPlainTensorError("has no storage in the file")
    offset = storage.start * element_size(storage.kind)
    if offset < 0 or offset + size * dtype.itemsize > file.spans[storage.key].length:
        raise NoPlainTensorError("has a storage that is cut off")
    try:
        if not count:
            return np.empty(shape, dtype)
        if storage.key not in storages:
            storages[storage.key] = file.read(storage.key)
        elements = storages[storage.key][offset : offset + size * dtype.itemsize]
        if file.is_big_endian:
            elements = _swapped(elements, dtype)
        steps = [stride * dtype.itemsize for stride in strides]
        return np.ndarray(shape, dtype, elements, tensor.start * dtype.itemsize, steps)
    except (ValueError, OverflowError, TypeError) as error:  # more dimensions or elements than numpy has
        raise NoPlainTensorError(f"has {len(shape)} dimensions that no array can have") from error


def _swapped(elements: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Bytes of elements of a dtype, each in the other byte order."""
    parts = 2 if np.issubdtype(dtype, np.complexfloating) else 1
    return elements.view(f"u{dtype.itemsize // parts}").byteswap().view(np.uint8)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, (tuple, list)) and all(type(value) is int and value >= 0 for value in values)
