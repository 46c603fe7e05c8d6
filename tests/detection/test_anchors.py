"""Anchors against mmdet's rules, cell by cell in float64."""

import math

import jax
import numpy as np
import pytest

from twins_jax.detection.anchors import RETINANET_ANCHORS, RPN_ANCHORS, Anchors, anchors_inside


def cell_by_cell(anchors: Anchors, i: int, height: int, width: int) -> list[list[float]]:
    boxes = []
    for row in range(height):
        for column in range(width):
            x, y = column * anchors.strides[i], row * anchors.strides[i]
            for ratio in anchors.ratios:
                for scale in anchors.scales:
                    w = anchors.strides[i] * scale / math.sqrt(ratio)
                    h = anchors.strides[i] * scale * math.sqrt(ratio)
                    boxes.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return boxes


@pytest.mark.parametrize("anchors", [RETINANET_ANCHORS, RPN_ANCHORS], ids=["retinanet", "rpn"])
def test_order_and_sizes(anchors: Anchors) -> None:
    shapes = [(6, 5), (3, 3), (2, 2), (1, 1), (1, 1)]
    for i, level in enumerate(anchors.levels(shapes)):
        assert level.dtype == np.float32
        np.testing.assert_allclose(level, cell_by_cell(anchors, i, *shapes[i]), rtol=1e-6, atol=1e-5)


def test_figures_of_mmdet() -> None:
    first = RETINANET_ANCHORS.level(0, 1, 1)[0]
    np.testing.assert_allclose(first, [-22.627, -11.314, 22.627, 11.314], atol=1e-3)
    of_32_pixels = RPN_ANCHORS.level(0, 1, 1)
    np.testing.assert_array_equal(of_32_pixels[1], [-16, -16, 16, 16])
    np.testing.assert_allclose(np.prod(of_32_pixels[:, 2:] - of_32_pixels[:, :2], axis=1), 32**2, rtol=1e-6)
    for anchors, number in ((RETINANET_ANCHORS, 201_600), (RPN_ANCHORS, 268_569)):
        shapes = [(math.ceil(800 / stride), math.ceil(1344 / stride)) for stride in anchors.strides]
        assert sum(height * width for height, width in shapes) * anchors.per_cell == number
        assert len(anchors.level(4, *shapes[4])) == np.prod(shapes[4]) * anchors.per_cell


@pytest.mark.parametrize("size", [(224, 320), (97, 320), (193, 64), (1, 1), (130, 257)])
def test_cells_in_the_padding_of_a_batch(size: tuple[int, int]) -> None:
    padded = (224, 320)
    shapes = tuple(
        (math.ceil(padded[0] / stride), math.ceil(padded[1] / stride)) for stride in RETINANET_ANCHORS.strides
    )
    own = [math.ceil(side / 32) * 32 for side in size]
    expected = []
    for stride, (height, width) in zip(RETINANET_ANCHORS.strides, shapes, strict=True):
        valid = np.zeros((height, width, RETINANET_ANCHORS.per_cell), bool)
        valid[: min(math.ceil(own[0] / stride), height), : min(math.ceil(own[1] / stride), width)] = True
        expected.append(valid.reshape(-1))
    inside = jax.jit(anchors_inside, static_argnums=(0, 1))(RETINANET_ANCHORS, shapes, np.array(size))
    np.testing.assert_array_equal(inside, np.concatenate(expected))
    assert len(inside) == sum(len(level) for level in RETINANET_ANCHORS.levels(shapes))
