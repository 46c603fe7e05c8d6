"""Boxes against torchvision's functions in float64, and mmdet's rules where torchvision has others."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.models import relative_error
from twins_jax.detection.boxes import (
    BOX_HEAD_STDS,
    RPN_STDS,
    box_area,
    box_iou,
    clip_boxes,
    decode_boxes,
    encode_boxes,
)


def draw(number: int, seed: int, extent: float = 300.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(-20, extent, (number, 2)), rng.uniform(4, extent / 2, (number, 2))
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def coder(torchvision: ModuleType) -> Any:  # noqa: ARG001 - the import needs its operators
    from torchvision.models.detection import _utils

    return _utils.BoxCoder


def test_iou_and_area(torchvision: ModuleType) -> None:
    import torch

    a, b = draw(30, 0), draw(40, 1)
    b[:5] = a[:5]
    doubles = [torch.from_numpy(x).double() for x in (a, b)]
    iou = np.asarray(jax.jit(box_iou)(a, b))
    np.testing.assert_allclose(iou, torchvision.ops.box_iou(*doubles), atol=1e-6)
    np.testing.assert_allclose(box_area(a), torchvision.ops.box_area(doubles[0]), rtol=1e-6)
    np.testing.assert_array_equal(iou[range(5), range(5)], 1.0)


def test_iou_of_boxes_without_area_is_zero() -> None:
    point, line, box = [3.0, 3.0, 3.0, 3.0], [0.0, 3.0, 9.0, 3.0], [0.0, 0.0, 9.0, 9.0]
    boxes = np.array([point, line, box], np.float32)
    np.testing.assert_array_equal(box_iou(boxes, boxes), np.diag([0.0, 0.0, 1.0]))


@pytest.mark.parametrize("stds", [RPN_STDS, BOX_HEAD_STDS])
def test_encode_and_decode(coder: Any, stds: tuple[float, float, float, float]) -> None:
    import torch

    anchors, boxes = draw(50, 2), draw(50, 3)
    truth = coder(weights=tuple(1 / std for std in stds))
    deltas = jax.jit(encode_boxes, static_argnums=2)(boxes, anchors, stds)
    doubles = [torch.from_numpy(x).double() for x in (boxes, anchors)]
    expected = truth.encode_single(*doubles)
    assert relative_error(deltas, expected.numpy()) < 1e-6
    np.testing.assert_allclose(decode_boxes(deltas, anchors, stds), boxes, atol=1e-3)

    deltas = np.random.default_rng(4).normal(0, 1 / max(stds), (50, 4)).astype(np.float32)
    expected = truth.decode_single(torch.from_numpy(deltas).double(), doubles[1])
    assert relative_error(jax.jit(decode_boxes, static_argnums=2)(deltas, anchors, stds), expected.numpy()) < 1e-6


def test_deltas_of_size_are_limited_on_both_sides() -> None:
    anchor = np.array([[100.0, 100.0, 200.0, 180.0]], np.float32)
    smallest, largest = (decode_boxes(jnp.array([[0.0, 0.0, d, d]]), anchor, RPN_STDS) for d in (-50.0, 50.0))
    sizes = [(box[0, 2:] - box[0, :2]).tolist() for box in (smallest, largest)]
    np.testing.assert_allclose(sizes, [[1.6, 1.28], [6250, 5000]], rtol=1e-4)


def test_padding_has_finite_deltas() -> None:
    boxes = np.zeros((2, 4), np.float32)
    anchors = np.array([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    assert np.isfinite(encode_boxes(boxes, anchors, BOX_HEAD_STDS)).all()


def test_bfloat16_deltas_move_boxes_in_float32() -> None:
    anchors = draw(20, 5, 1300.0)
    deltas = jnp.zeros((20, 4), jnp.bfloat16)
    boxes = decode_boxes(deltas, anchors, RPN_STDS)
    assert boxes.dtype == jnp.float32
    np.testing.assert_allclose(boxes, anchors, atol=1e-3)


def test_clip_keeps_the_edge() -> None:
    boxes = jnp.array([[-5.0, -1.0, 30.0, 41.0], [10.0, 12.0, 20.0, 40.0], [31.0, -9.0, 50.0, -2.0]])
    expected = [[0, 0, 20, 40], [10, 12, 20, 40], [20, 0, 20, 0]]
    np.testing.assert_array_equal(clip_boxes(boxes, np.array([40, 20])), expected)
    batch = jax.vmap(clip_boxes)(boxes[None], jnp.array([[40, 20]]))
    np.testing.assert_array_equal(batch[0], expected)
