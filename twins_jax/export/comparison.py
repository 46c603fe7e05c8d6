"""Runs an exported file and the model it was made of on the same images, and compares their outputs."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from twins_jax import ops
from twins_jax.export.program import Exportable, Program, with_options
from twins_jax.functional import split_model

BATCHES = (1, 3)
"""Batches of a program that takes any."""

BOUND = 4.0
"""The largest difference that holds, in rounding errors of the model.

Two computations that round equally well differ by two of their errors at most. As much again is left to luck: the
largest error of a few outputs is within a factor of two of its typical size.
"""

FLOOR = 2.0**-23
"""The rounding of a float32: a smaller error of the model is luck."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The outcome for one output of a program. Numbers are fractions of the output's largest value.

    Attributes:
        output: its name.
        difference: the largest one between file and model.
        rounding: the largest error of the model in its own dtype, against the same model in float64.
    """

    output: str
    difference: float
    rounding: float

    @property
    def bound(self) -> float:
        """The largest difference that holds."""
        return BOUND * max(self.rounding, FLOOR)

    @property
    def holds(self) -> bool:
        """True if file and model agree to within rounding; False if a difference is NaN."""
        return self.difference <= self.bound


def compare(program: Program, run: Callable[[np.ndarray], list[np.ndarray]]) -> list[Comparison]:
    """Compares a file with its model on random images, in a batch of one and a larger one.

    Args:
        program: of the file.
        run: computes the file's outputs.

    Returns:
        A comparison of each output.
    """
    batch = program.shape[0]
    batches = (batch,) if isinstance(batch, int) else BATCHES
    pixels = _random_images(program, max(batches))
    images = np.asarray(program.normalized(jnp.asarray(pixels)))
    ours = _outputs(with_options(program.model, remat=False), images)
    with jax.enable_x64(True):
        in_float64 = with_options(program.model, dtype=jnp.float64, attention_implementation=ops.PORTABLE, remat=False)
        exact = _outputs(in_float64, images)
    in_file = {size: run(pixels[:size]) for size in batches}
    return [
        _compare(name, ours[i], exact[i], {size: outputs[i] for size, outputs in in_file.items()})
        for i, name in enumerate(program.output_names)
    ]


def _compare(name: str, ours: np.ndarray, exact: np.ndarray, in_file: Mapping[int, np.ndarray]) -> Comparison:
    """Compares one output: the file's for several batches, by their sizes, with the first of the model's."""
    largest = float(np.abs(exact).max()) or 1.0
    differences = [_distance(output, ours[:size]) for size, output in in_file.items()]
    # `max` of Python would pass over a NaN that does not come first.
    return Comparison(name, float(np.max(differences)) / largest, _distance(ours, exact) / largest)


def _random_images(program: Program, batch: int) -> np.ndarray:
    rng, shape = np.random.default_rng(0), program.sized(batch)
    if program.normalizes:
        return rng.integers(256, size=shape, dtype=np.uint8)
    return rng.standard_normal(shape, np.float32)


def _outputs(model: Exportable, images: np.ndarray) -> list[np.ndarray]:
    apply, params = split_model(model)
    return [np.asarray(output, np.float64) for output in jax.tree.leaves(jax.jit(apply)(params, images))]


def _distance(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.abs(x - y).max()) if x.shape == y.shape else np.inf
