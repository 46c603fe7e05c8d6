"""Boxes: area, intersection over union, and the deltas by which a network moves an anchor or a proposal.

A box is x1, y1, x2, y2 in pixels of the network's input. Its width is x2 - x1, as in mmdet 2; older detectors add 1.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

Boxes = jax.Array | np.ndarray
"""float32 [..., 4] as x1, y1, x2, y2; anchors are NumPy's."""

Stds = tuple[float, float, float, float]

RPN_STDS: Stds = (1.0, 1.0, 1.0, 1.0)
"""Scale of the deltas of RetinaNet and of the region proposal network: none."""

BOX_HEAD_STDS: Stds = (0.1, 0.1, 0.2, 0.2)
"""Scale of the deltas of Mask R-CNN's box head, whose targets would else be small (Fast R-CNN)."""

MAX_LOG_RATIO = abs(math.log(16 / 1000))
"""Limit of a delta of size, up and down: a box is at most 62.5 times as wide as its anchor, and at least 1 / 62.5."""

MIN_AREA = 1e-6
"""Smallest area of a union, in pixels: it keeps the quotient of two empty boxes finite."""

MIN_SIDE = 1e-6
"""Shortest side of a box that is encoded, in pixels: it keeps the deltas of padding finite."""


def box_area(boxes: Boxes) -> jax.Array:
    """Computes the areas [...] of boxes [..., 4], in pixels."""
    x1, y1, x2, y2 = _sides(boxes)
    return (x2 - x1) * (y2 - y1)


def box_iou(a: Boxes, b: Boxes) -> jax.Array:
    """Computes the intersection over union of every box of `a` with every box of `b`.

    The union counts as `MIN_AREA` at least: two empty boxes have 0, as in mmdet.

    Args:
        a: [N, 4].
        b: [M, 4].

    Returns:
        float32 [N, M].
    """
    ax1, ay1, ax2, ay2 = (side[:, None] for side in _sides(a))
    bx1, by1, bx2, by2 = (side[None, :] for side in _sides(b))
    width = jnp.maximum(jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1), 0)
    height = jnp.maximum(jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1), 0)
    intersection = width * height
    union = box_area(a)[:, None] + box_area(b)[None, :] - intersection
    return intersection / jnp.maximum(union, MIN_AREA)


def encode_boxes(boxes: Boxes, anchors: Boxes, stds: Stds) -> jax.Array:
    """Computes the deltas that move anchors to boxes; `decode_boxes` is the inverse.

    The first two deltas are the shift of the center over the size of the anchor, the others the logarithm of the ratio
    of the sizes (R-CNN). A side shorter than `MIN_SIDE` counts as `MIN_SIDE`: mmdet's deltas of a box without area are
    infinite, and those of a padded batch would be.

    Args:
        boxes: [..., 4], the targets.
        anchors: [..., 4], anchors or proposals.
        stds: divisors of the four deltas: `RPN_STDS` or `BOX_HEAD_STDS`.

    Returns:
        float32 [..., 4].
    """
    x, y, width, height = _centers_and_sizes(boxes)
    anchor_x, anchor_y, anchor_width, anchor_height = _centers_and_sizes(anchors)
    width, height, anchor_width, anchor_height = (
        jnp.maximum(side, MIN_SIDE) for side in (width, height, anchor_width, anchor_height)
    )
    deltas = (
        (x - anchor_x) / anchor_width,
        (y - anchor_y) / anchor_height,
        jnp.log(width / anchor_width),
        jnp.log(height / anchor_height),
    )
    return jnp.stack([delta / std for delta, std in zip(deltas, stds, strict=True)], axis=-1)


def decode_boxes(deltas: jax.Array, anchors: Boxes, stds: Stds) -> jax.Array:
    """Moves anchors by deltas, as `encode_boxes` describes them.

    The deltas of size are limited to plus and minus `MAX_LOG_RATIO`, as in mmdet; torchvision limits them above alone.

    Args:
        deltas: [..., 4] of any floating-point type.
        anchors: [..., 4].
        stds: factors of the four deltas: `RPN_STDS` or `BOX_HEAD_STDS`.

    Returns:
        Boxes, float32 [..., 4]; they may reach beyond the image.
    """
    anchor_x, anchor_y, anchor_width, anchor_height = _centers_and_sizes(anchors)
    dx, dy, dw, dh = (side * std for side, std in zip(_sides(deltas), stds, strict=True))
    x, y = anchor_x + anchor_width * dx, anchor_y + anchor_height * dy
    half_width = 0.5 * anchor_width * jnp.exp(jnp.clip(dw, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    half_height = 0.5 * anchor_height * jnp.exp(jnp.clip(dh, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    return jnp.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=-1)


def clip_boxes(boxes: jax.Array, size: jax.Array | np.ndarray) -> jax.Array:
    """Moves the sides of boxes [..., 4] into an image of size [2] (height, width): x from 0 to its width, included."""
    height, width = size[0].astype(jnp.float32), size[1].astype(jnp.float32)
    x1, y1, x2, y2 = _sides(boxes)
    inside = [jnp.clip(side, 0, limit) for side, limit in ((x1, width), (y1, height), (x2, width), (y2, height))]
    return jnp.stack(inside, axis=-1)


def has_area(boxes: jax.Array) -> jax.Array:
    """Returns True for boxes [..., 4] whose sides are above 0: [...]."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


def _sides(boxes: Boxes) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    x1, y1, x2, y2 = jnp.unstack(jnp.asarray(boxes, jnp.float32), axis=-1)
    return x1, y1, x2, y2


def _centers_and_sizes(boxes: Boxes) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    x1, y1, x2, y2 = _sides(boxes)
    return (x1 + x2) * 0.5, (y1 + y2) * 0.5, x2 - x1, y2 - y1
