"""Checkpoints of a state that no run made: values that a step makes different everywhere."""

import dataclasses
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from train.checkpoint import Checkpoints
from train.config import CheckpointConfig
from train.state import TrainState, create_state
from twins_jax.sharding import make_mesh

SHAPES = {"blocks": {"0": {"kernel": (40, 33)}}, "scale": (7,)}


def state(step: int = 0, shapes: dict[str, Any] = SHAPES, *, ema: bool = True) -> TrainState:
    """Values that a step makes different everywhere, in the optimizer too."""
    rng = np.random.default_rng(step)
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    params = jax.tree.map(lambda _: jnp.zeros(()), shapes, is_leaf=is_shape)
    params = jax.tree.map(lambda _, shape: jnp.zeros(shape), params, shapes)
    start = create_state(params, {}, optax.adamw(1e-3), make_mesh(), ema=ema)

    def fill(leaf: jax.Array) -> jax.Array:
        values = rng.standard_normal(leaf.shape) if leaf.dtype == jnp.float32 else np.full(leaf.shape, step)
        return jax.device_put(jnp.asarray(values, leaf.dtype), leaf.sharding)

    return dataclasses.replace(jax.tree.map(fill, start), step=jnp.int32(step))


def data(position: int = 0) -> grain.DatasetIterator:
    iterator = iter(grain.MapDataset.range(1000).to_iter_dataset())
    for _ in range(position):
        next(iterator)
    return iterator


def save(workdir: Path, steps: dict[int, float | None], keep: int = 2, **arguments: Any) -> list[int]:
    """Restores the newest checkpoint and saves steps with their top-1, as one run does; returns the steps kept."""
    with Checkpoints(workdir, CheckpointConfig(every_steps=1, keep=keep), "top1") as checkpoints:
        checkpoints.restore(state(**arguments), data())
        for step, top1 in steps.items():
            evaluation = None if top1 is None else {"top1": top1, "loss": 1.0}
            checkpoints.save(state(step, **arguments), step, data(10 * step), evaluation)
    return kept(workdir)


def kept(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def restore(workdir: Path, template: TrainState | None = None) -> tuple[TrainState | None, int]:
    """The state, and the next example of its data."""
    with Checkpoints(workdir, CheckpointConfig(every_steps=1, keep=9), "top1") as checkpoints:
        iterator = data()
        restored = checkpoints.restore(template or state(), iterator)
        return restored, int(next(iterator))


def assert_is(restored: TrainState | None, step: int, **arguments: Any) -> None:
    expected = state(step, **arguments)
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    for actual, leaf in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        assert (actual.dtype, actual.sharding) == (leaf.dtype, leaf.sharding)
        assert np.asarray(actual).tobytes() == np.asarray(leaf).tobytes()
