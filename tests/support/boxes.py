"""Boxes drawn for tests, and their intersection over union in NumPy."""

import hypothesis.strategies as st
import numpy as np


def iou_matrix(truth: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    corner = np.maximum(truth[:, None, :2], boxes[None, :, :2])
    sides = np.maximum(np.minimum(truth[:, None, 2:], boxes[None, :, 2:]) - corner, 0)
    intersection = sides[..., 0] * sides[..., 1]
    areas = [(x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (truth, boxes)]
    union = areas[0][:, None] + areas[1][None, :] - intersection
    iou: np.ndarray = intersection / np.maximum(union, np.float32(1e-6))
    return iou


def on_a_grid(number: int) -> st.SearchStrategy[np.ndarray]:
    """Boxes of few coordinates: many IoUs are equal, 0 or a threshold, and some boxes have no area."""
    x = st.integers(0, 4).map(float)
    box = st.tuples(x, x, x, x).map(lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3])))
    return st.lists(box, min_size=number, max_size=number).map(lambda boxes: np.array(boxes, np.float32))
