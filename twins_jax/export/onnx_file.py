"""Files of ONNX, by jax2onnx. The packages are those of the extra `onnx`, and imported where they are needed."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np

from twins_jax.errors import InputError
from twins_jax.export.program import Program

PACKAGES = ("jax2onnx", "onnx", "onnxruntime")
"""Those of the extra."""

METADATA_KEY = "twins_jax"
"""The key of the manifest in a file's metadata, as in .safetensors files."""


def check_installed() -> None:
    """Raises InputError that names the extra, unless its packages are installed."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise InputError(f"exporting to ONNX needs {', '.join(missing)}; install twins_jax with its extra `onnx`")


def write(program: Program, path: str) -> dict[str, Any]:
    """Writes an ONNX file with the input "images" and outputs of the program's names.

    Returns:
        What the manifest says of this format.
    """
    import onnx
    from jax2onnx import to_onnx

    model = to_onnx(
        program.function(),
        inputs=[jax.ShapeDtypeStruct(program.shape, program.dtype)],
        model_name="twins",
        input_names=["images"],
        output_names=list(program.output_names),
    )
    onnx.save(model, path)
    return {"opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}}


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
