"""Sampling of the boxes that a loss is computed of (mmdet's RandomSampler)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from twins_jax.detection.assign import BACKGROUND, IGNORED


class Samples(NamedTuple):
    """Boxes drawn from those of an image: the positives, the negatives, and what is left unused."""

    indices: jax.Array
    """int32 [number], of the boxes; 0 where unused."""

    assigned: jax.Array
    """int32 [number]: an object, `BACKGROUND`, or `IGNORED` where unused."""

    valid: jax.Array
    """bool [number], False where unused."""


def sample(key: jax.Array, assigned: jax.Array, *, number: int, max_positive: int) -> Samples:
    """Draws boxes uniformly and without replacement: first positives, then negatives up to a total.

    The positives are `max_positive`, or all if they are fewer. Negatives fill the rest, or all are taken if they are
    fewer. Each box has a random number, and the largest are taken: the shapes do not depend on how many boxes are
    positive, and the memory is that of a few arrays [A]. mmdet shuffles lists of the two kinds.

    Args:
        key: decides the result together with `assigned`.
        assigned: int32 [A] as `assign` returns it; ignored boxes are never drawn.
        number: boxes to draw.
        max_positive: positives among them at most.

    Returns:
        Samples of `number` boxes; the unused ones are the last.
    """
    noise = jax.random.uniform(key, assigned.shape, jnp.float32)
    is_positive, is_negative = assigned >= 0, assigned == BACKGROUND
    most_positives, most_negatives = min(max_positive, len(assigned)), min(number, len(assigned))
    _, positives = jax.lax.top_k(jnp.where(is_positive, noise, -1), most_positives)
    _, negatives = jax.lax.top_k(jnp.where(is_negative, noise, -1), most_negatives)
    num_positives = jnp.minimum(is_positive.sum(dtype=jnp.int32), max_positive)
    slot = jnp.arange(number, dtype=jnp.int32)
    valid = slot < num_positives + is_negative.sum(dtype=jnp.int32)
    source = jnp.where(slot < num_positives, slot, most_positives + slot - num_positives)
    drawn = jnp.concatenate([positives, negatives])[jnp.where(valid, source, 0)]
    return Samples(
        indices=jnp.where(valid, drawn, 0).astype(jnp.int32),
        assigned=jnp.where(valid, assigned[drawn], IGNORED).astype(jnp.int32),
        valid=valid,
    )
