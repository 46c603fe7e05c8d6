"""Models as files that run without this library: StableHLO for JAX, and ONNX.

`program` makes a function of images alone out of a model, `stablehlo_file` and `onnx_file` write and read one format
each, `comparison` runs a written file against the model, and `manifest` describes it.
"""

from twins_jax.export.export import ExportError, export_model

__all__ = ["ExportError", "export_model"]
