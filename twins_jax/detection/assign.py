"""Assignment of anchors and proposals to the objects of an image (mmdet's MaxIoUAssigner)."""

import jax
import jax.numpy as jnp

from twins_jax.detection.boxes import Boxes, box_iou

BACKGROUND = -1
"""Assigned to a box that has no object: it is a negative."""

IGNORED = -2
"""Assigned to a box that takes no part in the loss."""


def assign(
    boxes: Boxes,
    truth: jax.Array,
    truth_valid: jax.Array,
    *,
    positive: float,
    negative: float,
    min_positive: float,
    valid: jax.Array | None = None,
) -> jax.Array:
    """Assigns each box to an object, to the background, or to neither.

    Three rules, of which a later one overrules an earlier one:

    1. A box whose best IoU is below `negative` is background; one between is ignored.
    2. A box whose best IoU is at least `positive` has the object of that IoU, the first of several.
    3. Each object, if its best IoU is at least `min_positive`, has every box of exactly that IoU; of several objects
       the last has the box. An object that touches no box has all of them with `min_positive` 0, as in mmdet.

    The loop over objects in mmdet's third rule becomes a maximum over their indices. The largest arrays are [G, A]: two
    of them have 217 MB together for 100 objects and the 268,569 anchors of Mask R-CNN at 800x1344.

    Args:
        boxes: [A, 4].
        truth: [G, 4], the boxes of the objects, and padding.
        truth_valid: bool [G], False for padding.
        positive: least IoU of rule 2.
        negative: IoU from which on a box is not background.
        min_positive: least IoU of rule 3, 0 or more.
        valid: bool [A]; the others are ignored, and no object's best. None: all are valid.

    Returns:
        int32 [A]: the index of an object, `BACKGROUND` or `IGNORED`.
    """
    used = jnp.ones(len(boxes), bool) if valid is None else valid
    if not len(truth):
        return jnp.where(used, BACKGROUND, IGNORED).astype(jnp.int32)
    iou = jnp.where(truth_valid[:, None] & used[None, :], box_iou(truth, boxes), -1)
    # Rule 3 looks for a number that was computed here, and another order of rounding must not hide it.
    iou = jax.lax.optimization_barrier(iou)
    best = iou.max(axis=0)
    assigned = jnp.where(best < negative, BACKGROUND, IGNORED).astype(jnp.int32)
    assigned = jnp.where(best >= positive, iou.argmax(axis=0).astype(jnp.int32), assigned)
    best_of_object = iou.max(axis=1, keepdims=True)
    claimed = (iou == best_of_object) & (best_of_object >= min_positive)  # padding has -1
    last = jnp.where(claimed, jnp.arange(len(truth), dtype=jnp.int32)[:, None], -1).max(axis=0)
    assigned = jnp.where(last >= 0, last, assigned)
    return jnp.where(used, assigned, IGNORED)
