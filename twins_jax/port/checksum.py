"""A checksum of parameters, which training saves with each checkpoint."""

from types import ModuleType
from typing import Any

import jax


def checksum(tree: Any, xp: ModuleType) -> Any:
    """uint32 [] of all bits of a tree of 4-byte numbers; Orbax's files have none, and a wrong bit would go unseen.

    Integer sums are exact in any order, so the layout over devices does not matter; odd weights let no change of a
    single number vanish.

    Args:
        tree: of numpy arrays, or of JAX's.
        xp: numpy or jax.numpy, to compute with.
    """

    def weighted_sum(words: Any) -> Any:
        return (words * (2 * xp.arange(words.size, dtype=xp.uint32) + 1).reshape(words.shape)).sum(dtype=xp.uint32)

    return weighted_sum(xp.stack([weighted_sum(leaf.view(xp.uint32)) for leaf in jax.tree.leaves(tree)]))
