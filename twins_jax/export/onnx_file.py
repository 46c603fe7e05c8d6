"""Files of ONNX, by jax2onnx. The packages are those of the extra `onnx`, and imported where they are needed."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from twins_jax.errors import require
from twins_jax.export.program import BATCH, Program

PACKAGES = ("jax2onnx", "onnx", "onnxruntime")
"""Those of the extra."""

METADATA_KEY = "twins_jax"
"""The key of the manifest in a file's metadata, as in .safetensors files."""


def write(program: Program, path: str) -> dict[str, Any]:
    """Writes an ONNX file with the input "images" and outputs of the program's names.

    Returns:
        What the manifest says of this format.

    Raises:
        InputError: the model computes in another dtype than float32.
    """
    dtype = jnp.dtype(program.model.config.dtype).name
    require("dtype", dtype, dtype == "float32", "float32 for an ONNX file")  # jax2onnx mixes others up
    import onnx
    from jax2onnx import to_onnx

    # Traced for any batch: the loops over parts of a known one are beyond jax2onnx.
    batch, *sides = program.shape
    with _errors_alone("jax2onnx", "onnx_ir"):
        model = to_onnx(
            program.function(),
            inputs=[jax.ShapeDtypeStruct((BATCH, *sides), program.dtype)],
            model_name="twins",
            input_names=["images"],
            output_names=list(program.output_names),
        )
    if isinstance(batch, int):
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = batch
        del model.graph.value_info[:]  # the shapes between them, which name the batch; readers infer them
    onnx.save(model, path)
    return {"opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}}


@contextlib.contextmanager
def _errors_alone(*names: str) -> Iterator[None]:
    """Keeps warnings out of the log: of plugins for libraries that are not used here, and of shapes left open."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def load(path: str) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Returns a function that runs a file in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: [np.asarray(output, np.float64) for output in session.run(None, {"images": images})]


def add_manifest(path: str, manifest: str) -> None:
    """Adds the manifest to a file's metadata, and leaves the bytes before it as they are.

    Of two messages of protobuf, one written after the other, a reader sees the sum.
    """
    import onnx

    entry = onnx.StringStringEntryProto(key=METADATA_KEY, value=manifest)
    with open(path, "ab") as file:
        file.write(onnx.ModelProto(metadata_props=[entry]).SerializeToString())
