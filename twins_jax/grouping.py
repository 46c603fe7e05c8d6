"""Inference of a large batch a few images at a time, where XLA's CPU backend gains by it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax import lax
from jax.custom_derivatives import SymbolicZero

POSITIONS = 6272
"""Positions of a stage's map in one group: two images of 224x224 in the first stage, 32 in the third."""

Run = Callable[[nnx.State, jax.Array], jax.Array]


def group_size(batch: int, positions: int) -> int:
    """Images in a group: the largest divisor of `batch` within `POSITIONS`, if it fills half of it at least.

    Args:
        batch: images in all.
        positions: of the map of one image.

    Returns:
        `batch`, for no groups, where the batch is small or has no such divisor.
    """
    most = max(POSITIONS // positions, 1)
    size = next((size for size in range(min(most, batch), 0, -1) if batch % size == 0), batch)
    return size if 2 * size >= most else batch


def in_groups(run: Run, params: nnx.State, x: jax.Array, size: int) -> jax.Array:
    """run(params, x), computed for `size` rows of x [B, ...] at a time on a CPU, one group after the other.

    An MLP's hidden activations of the whole batch are read from and written to memory; those of a group stay in the
    cache, and less memory is taken anew from the system in every call. Other backends compute the batch at once, and so
    does every derivative, which needs the activations of all of it. Where it is lowered decides, so both are traced.

    Args:
        run: acts on each row alone.
        params: its parameters.
        x: B rows, a multiple of `size`.
        size: rows in a group.
    """

    @jax.custom_jvp
    def grouped(params: nnx.State, x: jax.Array) -> jax.Array:
        def on_cpu(params: nnx.State, x: jax.Array) -> jax.Array:
            y = lax.map(partial(run, params), x.reshape(-1, size, *x.shape[1:]))
            return y.reshape(-1, *y.shape[2:])

        return lax.platform_dependent(params, x, cpu=on_cpu, default=run)

    @partial(grouped.defjvp, symbolic_zeros=True)
    def _grouped_jvp(primals: tuple[nnx.State, jax.Array], tangents: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
        # Only along what moves: products with zeros would be computed, and jaxlib 0.10.2 computes some of them wrongly.
        leaves, tree = jax.tree.flatten(primals)
        moves = [not isinstance(tangent, SymbolicZero) for tangent in jax.tree.leaves(tangents)]

        def run_moving(*moving: jax.Array) -> jax.Array:
            moved = iter(moving)
            mixed = (next(moved) if m else leaf for m, leaf in zip(moves, leaves, strict=True))
            return run(*jax.tree.unflatten(tree, mixed))

        moving = [leaf for m, leaf in zip(moves, leaves, strict=True) if m]
        along = [tangent for m, tangent in zip(moves, jax.tree.leaves(tangents), strict=True) if m]
        return jax.jvp(run_moving, moving, along)

    return grouped(params, x)
