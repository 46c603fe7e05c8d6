"""The learning rate of detection by step."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

if TYPE_CHECKING:
    import optax


def step_schedule(
    learning_rate: float, *, boundaries: Sequence[int], factor: float, warmup_steps: int, warmup_ratio: float
) -> "optax.Schedule":
    """Makes mmcv's `StepLrUpdaterHook` with a linear warm-up, of upstream's `detection/configs`.

    At step i the rate has been multiplied by `factor` once for each boundary up to i; in the first W steps it is also
    multiplied by 1 - (1 - i / W) (1 - ratio).

    Args:
        learning_rate: before decay and warm-up.
        boundaries: the first steps of each lower rate.
        factor: of each fall.
        warmup_steps: W.
        warmup_ratio: the factor at step 0.
    """

    def schedule(step: Any) -> Any:
        done = jnp.asarray(step, jnp.float32)
        falls = jnp.sum(done >= jnp.asarray(boundaries, jnp.float32), dtype=jnp.float32)
        warm = jnp.minimum(done / warmup_steps, 1) if warmup_steps else jnp.ones(())
        return learning_rate * factor**falls * (warm + (1 - warm) * warmup_ratio)

    return schedule
