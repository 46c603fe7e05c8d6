"""Assignment against mmdet's rules as loops in NumPy."""

from functools import partial

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.boxes import iou_matrix, on_a_grid
from twins_jax.detection.anchors import RETINANET_ANCHORS, RPN_ANCHORS, Anchors
from twins_jax.detection.assign import BACKGROUND, IGNORED, assign
from twins_jax.detection.boxes import box_iou

RETINANET = (0.5, 0.4, 0.0)
RPN = (0.7, 0.3, 0.3)
BOX_HEAD = (0.5, 0.5, 0.5)
THRESHOLDS = {"retinanet": RETINANET, "rpn": RPN, "box_head": BOX_HEAD}
"""positive, negative, min_positive."""


def reference(iou: np.ndarray, thresholds: tuple[float, float, float]) -> list[int]:
    """mmdet's rules, for the IoU [G, A] of valid boxes and objects alone."""
    positive, negative, min_positive = (np.float32(threshold) for threshold in thresholds)
    objects, boxes = iou.shape
    if not objects:
        return [BACKGROUND] * boxes
    assigned = [IGNORED] * boxes
    for box in range(boxes):
        if iou[:, box].max() < negative:
            assigned[box] = BACKGROUND
        if iou[:, box].max() >= positive:
            assigned[box] = int(iou[:, box].argmax())
    for i in range(objects):
        if iou[i].max() >= min_positive:
            for box in np.flatnonzero(iou[i] == iou[i].max()):
                assigned[box] = i
    return assigned


@partial(jax.jit, static_argnames="thresholds")
def assigned_by(
    boxes: jax.Array,
    truth: jax.Array,
    truth_valid: jax.Array,
    valid: jax.Array | None,
    thresholds: tuple[float, float, float],
) -> jax.Array:
    positive, negative, min_positive = thresholds
    return assign(
        boxes, truth, truth_valid, positive=positive, negative=negative, min_positive=min_positive, valid=valid
    )


@pytest.mark.parametrize("name", THRESHOLDS)
@hypothesis.given(
    boxes=on_a_grid(9),
    truth=on_a_grid(4),
    truth_valid=st.lists(st.booleans(), min_size=4, max_size=4),
    valid=st.lists(st.booleans(), min_size=9, max_size=9),
)
@hypothesis.settings(max_examples=60)
def test_as_mmdet(name: str, boxes: np.ndarray, truth: np.ndarray, truth_valid: list[bool], valid: list[bool]) -> None:
    objects, used = np.flatnonzero(truth_valid), np.flatnonzero(valid)
    expected = np.full(9, IGNORED)
    if len(used):
        of_used = reference(iou_matrix(truth[objects], boxes[used]), THRESHOLDS[name])
        expected[used] = [objects[i] if i >= 0 else i for i in of_used]
    assigned = assigned_by(boxes, truth, np.array(truth_valid), np.array(valid), THRESHOLDS[name])
    assert assigned.dtype == jnp.int32
    np.testing.assert_array_equal(assigned, expected)


@pytest.mark.parametrize(("anchors", "name"), [(RETINANET_ANCHORS, "retinanet"), (RPN_ANCHORS, "rpn")])
def test_anchors_of_an_image(anchors: Anchors, name: str) -> None:
    """Coordinates that float32 rounds: an object's best IoU must still be found equal to itself.

    The last bit decides on ties here, and XLA's is not NumPy's: the truth starts from XLA's IoU.
    """
    boxes = np.concatenate(anchors.levels([(-(-96 // stride), -(-160 // stride)) for stride in anchors.strides]))
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 100, (40, 2))
    truth = np.concatenate([corner, corner + rng.uniform(2, 60, (40, 2))], axis=1).astype(np.float32)
    assigned = np.asarray(assigned_by(boxes, truth, np.ones(40, bool), None, THRESHOLDS[name]))
    iou = np.asarray(jax.jit(box_iou)(truth, boxes))
    np.testing.assert_array_equal(assigned, reference(iou, THRESHOLDS[name]))
    assert {BACKGROUND, IGNORED} < set(assigned.tolist())


@pytest.mark.parametrize(("name", "claims"), [("retinanet", True), ("rpn", False)])
def test_an_object_that_touches_no_box(name: str, claims: bool) -> None:
    boxes = RPN_ANCHORS.level(0, 4, 4)
    truth = np.array([[300.0, 300.0, 310.0, 310.0]], np.float32)
    assigned = assigned_by(boxes, truth, np.ones(1, bool), None, THRESHOLDS[name])
    np.testing.assert_array_equal(assigned, np.full(len(boxes), 0 if claims else BACKGROUND))


@pytest.mark.parametrize("objects", [0, 3])
def test_without_objects_all_is_background(objects: int) -> None:
    boxes = RPN_ANCHORS.level(2, 2, 2)
    valid = np.arange(len(boxes)) % 3 > 0
    truth = np.zeros((objects, 4), np.float32)
    assigned = assigned_by(boxes, truth, np.zeros(objects, bool), valid, RETINANET)
    np.testing.assert_array_equal(assigned, np.where(valid, BACKGROUND, IGNORED))


def test_a_batch_of_images() -> None:
    boxes = RPN_ANCHORS.level(0, 8, 8)
    truth = jnp.array([[[3.0, 2.0, 30.0, 28.0]], [[1.0, 1.0, 5.0, 40.0]]])
    together = jax.vmap(lambda t: assigned_by(boxes, t, jnp.ones(1, bool), None, RPN))(truth)
    alone = [assigned_by(boxes, t, jnp.ones(1, bool), None, RPN) for t in truth]
    np.testing.assert_array_equal(together, alone)
