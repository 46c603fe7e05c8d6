"""Files of `jax.export`: the StableHLO of one program for several platforms, with its weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from twins_jax import ops
from twins_jax.export.program import Program

PACKAGES = ("jax", "jaxlib")


def write(program: Program, path: str) -> dict[str, Any]:
    """Writes a file that `jax.export.deserialize` reads.

    Returns:
        What the manifest says of this format.
    """
    dimensions = jax_export.symbolic_shape(", ".join(map(str, program.shape)))
    images = jax.ShapeDtypeStruct(dimensions, program.dtype)
    exported = jax_export.export(jax.jit(program.function()), platforms=ops.PLATFORMS)(images)
    Path(path).write_bytes(exported.serialize())
    return {
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
    }


def load(path: str) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Returns a function that runs a file."""
    call = jax_export.deserialize(bytearray(Path(path).read_bytes())).call
    return lambda images: [np.asarray(output, np.float64) for output in jax.tree.leaves(call(images))]
