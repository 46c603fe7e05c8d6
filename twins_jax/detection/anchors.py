"""Anchors: the boxes that RetinaNet and the region proposal network move, in mmdet's order."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Anchors:
    """Anchors of several shapes on every cell of the maps of a pyramid.

    The anchors of cell (x, y) have their center at (x * stride, y * stride), the cell's upper left corner. Their area
    is (stride * scale)^2, their height over their width a ratio; nothing is rounded. They are ordered by level from
    fine to coarse, by row, by column, by ratio and then by scale.

    Attributes:
        strides: pixels between cells, of each level.
        scales: square roots of the anchors' areas, in strides.
        ratios: heights over widths.
    """

    strides: tuple[int, ...]
    scales: tuple[float, ...]
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)

    @property
    def per_cell(self) -> int:
        """Anchors of a cell."""
        return len(self.scales) * len(self.ratios)

    def level(self, i: int, height: int, width: int) -> np.ndarray:
        """Returns the anchors of level i, whose map is [height, width]: float32 [height * width * per_cell, 4]."""
        stride = np.float32(self.strides[i])
        scales, roots = np.array(self.scales, np.float32), np.sqrt(np.array(self.ratios, np.float32))
        # mmdet's order of operations gives mmdet's last bits.
        half_width = np.float32(0.5) * (stride * (1 / roots)[:, None] * scales).reshape(-1)
        half_height = np.float32(0.5) * (stride * roots[:, None] * scales).reshape(-1)
        shapes = np.stack([-half_width, -half_height, half_width, half_height], axis=-1)
        rows, columns = (stride * np.arange(length, dtype=np.float32) for length in (height, width))
        y, x = np.meshgrid(rows, columns, indexing="ij")
        centers = np.stack([x, y, x, y], axis=-1)
        return (centers[:, :, None] + shapes).reshape(-1, 4)

    def levels(self, shapes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Returns the anchors of every level, whose maps have these heights and widths."""
        return [self.level(i, *shape) for i, shape in zip(range(len(self.strides)), shapes, strict=True)]


RETINANET_ANCHORS = Anchors(strides=(8, 16, 32, 64, 128), scales=(4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)))
"""RetinaNet's: nine a cell."""

RPN_ANCHORS = Anchors(strides=(4, 8, 16, 32, 64), scales=(8.0,))
"""The region proposal network's: three a cell."""


DIVISOR = 32
"""Pixels: mmdet pads each image to a multiple of it, and then all of a batch to the largest."""


def anchors_inside(anchors: Anchors, shapes: Sequence[tuple[int, int]], size: jax.Array | np.ndarray) -> jax.Array:
    """Marks the anchors whose cell is inside an image that a batch has padded: the others have no part in training.

    A cell counts where its row is below ceil(height / stride), and its column likewise. The height is that of the image
    padded to a multiple of `DIVISOR`, and not of the batch. An anchor of a cell that counts may reach beyond the image.

    Args:
        anchors: the anchors.
        shapes: heights and widths of the levels' maps.
        size: int [2], height and width of the image without padding.

    Returns:
        bool [A], of the levels' anchors one after another.
    """
    padded_height, padded_width = ((side + DIVISOR - 1) // DIVISOR * DIVISOR for side in (size[0], size[1]))
    inside = []
    for stride, (height, width) in zip(anchors.strides, shapes, strict=True):
        # For whole numbers, row < ceil(height / stride) is row * stride < height.
        rows = jnp.arange(height) * stride < padded_height
        columns = jnp.arange(width) * stride < padded_width
        cells = rows[:, None, None] & columns[None, :, None]
        inside.append(jnp.broadcast_to(cells, (height, width, anchors.per_cell)).reshape(-1))
    return jnp.concatenate(inside)
