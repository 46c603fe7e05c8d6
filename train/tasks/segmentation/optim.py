"""The learning rate of segmentation by step, and the parameters that decay, by path in a `TwinsSegmenter`."""

import re
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

if TYPE_CHECKING:
    import optax


def poly_schedule(
    learning_rate: float,
    *,
    end_value: float,
    power: float,
    total_steps: int,
    warmup_steps: int,
    warmup_ratio: float,
) -> "optax.Schedule":
    """Makes mmcv's `PolyLrUpdaterHook` with a linear warm-up, of upstream's `segmentation/configs`.

    At step i of N it is ((rate - end) (1 - i / N)^power + end), in the first W steps times
    1 - (1 - i / W) (1 - ratio): the decay runs beneath the warm-up. mmseg 1.x starts the decay after the warm-up.

    Args:
        learning_rate: before decay and warm-up.
        end_value: the rate at step N.
        power: of the decay.
        total_steps: N.
        warmup_steps: W.
        warmup_ratio: the factor at step 0.
    """

    def schedule(step: Any) -> Any:
        done = jnp.asarray(step, jnp.float32)
        left = jnp.maximum(total_steps - done, 0) / total_steps
        rate = (learning_rate - end_value) * left**power + end_value
        warm = jnp.minimum(done / warmup_steps, 1) if warmup_steps else jnp.ones(())
        return rate * (warm + (1 - warm) * warmup_ratio)

    return schedule


def decays(path: str) -> bool:
    """Decides whether a parameter decays in upstream's UPerNet: where its name there has no `norm` and no `pos_block`.

    Those are the backbone's norms and its PEG. The BatchNorms of the heads, named `bn`, and all other biases decay.
    """
    return not re.search(r"norm|(^|/)peg/", path)
