"""The way from the outputs of heads to boxes, against loops of mmdet's rules in NumPy, on random outputs."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from tests.support.compilation import fast_compilation
from twins_jax.abstract import abstract_model
from twins_jax.config import DTypes
from twins_jax.detection import retinanet, roi_heads
from twins_jax.detection.retinanet import dense_detections
from twins_jax.detection.roi_heads import BoxHead, MaskHead, mask_probabilities, region_detections
from twins_jax.detection.rpn import proposals

pytestmark = pytest.mark.usefixtures("_fast_compilation")

CLASSES = 3
SIZES = np.array([[128, 160], [90, 77]], np.int32)
"""Of two images padded to 128x160."""

RATIOS = (0.5, 1.0, 2.0)


@pytest.fixture(scope="module")
def _fast_compilation() -> Iterator[None]:
    with fast_compilation():
        yield


class Found(NamedTuple):
    """Boxes of one image in an answer, best first."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def anchors_of(stride: int, scales: tuple[float, ...], height: int, width: int) -> np.ndarray:
    """Anchors of one level, one after the other: cells by row, ratios, scales."""
    boxes = []
    for row in range(height):
        for column in range(width):
            for ratio in RATIOS:
                for scale in scales:
                    w, h = stride * scale / ratio**0.5, stride * scale * ratio**0.5
                    x, y = column * stride, row * stride
                    boxes.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    return np.array(boxes)


def decoded(anchor: np.ndarray, delta: np.ndarray, size: np.ndarray) -> np.ndarray:
    """A box of mmdet's DeltaXYWHBBoxCoder, clipped."""
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x = (anchor[0] + anchor[2]) / 2 + delta[0] * width
    y = (anchor[1] + anchor[3]) / 2 + delta[1] * height
    limit = abs(np.log(16 / 1000))
    width, height = (side * np.exp(np.clip(d, -limit, limit)) for side, d in ((width, delta[2]), (height, delta[3])))
    box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return np.clip(box, 0, (size[1], size[0], size[1], size[0]))


def iou(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    sides = np.maximum(np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]), 0)
    areas = sides.prod(axis=1)
    unions = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod() - areas
    return areas / np.maximum(unions, 1e-6)


def survivors_of(boxes: np.ndarray, labels: np.ndarray, threshold: float, number: int) -> list[int]:
    """The first indices that greedy NMS keeps of boxes in order of score."""
    kept: list[int] = []
    for i, box in enumerate(boxes):
        if not ((iou(boxes[kept], box) > threshold) & (labels[kept] == labels[i])).any():
            kept.append(i)
        if len(kept) == number:
            break
    return kept


def best(candidates: list[tuple[float, int, np.ndarray]], threshold: float, number: int) -> Found:
    """The candidates (score, label, box) that NMS keeps, best first."""
    candidates = sorted(candidates, key=lambda candidate: -candidate[0])
    scores, labels = (np.array([candidate[i] for candidate in candidates]) for i in range(2))
    boxes = np.array([box for *_, box in candidates]).reshape(-1, 4)
    kept = survivors_of(boxes, labels, threshold, number)
    return Found(boxes[kept], scores[kept], labels[kept])


def has_area(box: np.ndarray) -> bool:
    return bool(box[2] > box[0] and box[3] > box[1])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def logits_of(rng: np.random.Generator, *shape: int, low: float = 0.001, high: float = 0.97) -> np.ndarray:
    """Logits of probabilities that are all different, by more than float32's rounding."""
    probabilities = rng.permutation(np.linspace(low, high, int(np.prod(shape))))
    return np.log(probabilities / (1 - probabilities)).astype(np.float32).reshape(shape)


def check(found: Any, expected: list[Found], count: int) -> None:
    """Compares the first fields of `Detections`, or those of `Proposals`, with the truth of each image."""
    assert found.boxes.shape == (2, count, 4)
    for i, truth in enumerate(expected):
        number = len(truth.boxes)
        assert (np.asarray(found.valid[i]) == (np.arange(count) < number)).all()
        np.testing.assert_allclose(found.boxes[i, :number], truth.boxes, atol=1e-3)
        assert not np.asarray(found.boxes[i, number:]).any()
        if hasattr(found, "scores"):
            np.testing.assert_allclose(found.scores[i, :number], truth.scores, atol=1e-6)
            np.testing.assert_array_equal(found.labels[i, :number], truth.labels)
            assert not np.asarray(found.scores[i, number:]).any()


def run(function: Callable[..., Any]) -> Callable[..., Any]:
    """A program of its own: `jax.jit` would find the one that another test compiled."""
    return jax.jit(lambda **arguments: function(**arguments))


@pytest.mark.parametrize("limit", [1000, 30])
def test_retinanet(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Per level the best 1,000 pairs above 0.05; NMS at 0.5 within a class; the best 100."""
    assert retinanet.MAX_PER_LEVEL == 1000
    monkeypatch.setattr(retinanet, "MAX_PER_LEVEL", limit)
    rng = np.random.default_rng(0)
    scales = tuple(4 * 2 ** (i / 3) for i in range(3))
    outputs = []
    for stride in (8, 16, 32, 64, 128):
        height, width = -(-128 // stride), -(-160 // stride)
        logits = logits_of(rng, 2, height, width, 9 * CLASSES)
        logits[1] -= 6.2  # of the second image few are above 0.05
        deltas = rng.standard_normal((2, height, width, 36), np.float32)
        outputs.append((logits, deltas))
    expected = []
    for image, size in enumerate(SIZES):
        candidates = []
        for (logits, deltas), stride in zip(outputs, (8, 16, 32, 64, 128), strict=True):
            anchors = anchors_of(stride, scales, *logits.shape[1:3])
            scores = sigmoid(logits[image].astype(np.float64)).reshape(len(anchors), CLASSES)
            pairs = sorted(zip(*np.nonzero(scores > 0.05), strict=True), key=lambda pair: -scores[pair])[:limit]
            moves = deltas[image].reshape(-1, 4).astype(np.float64)
            for anchor, label in pairs:
                box = decoded(anchors[anchor], moves[anchor], size)
                if has_area(box):
                    candidates.append((scores[anchor, label], int(label), box))
        expected.append(best(candidates, 0.5, 100))
    assert (len(expected[0].boxes) == 100) == (limit == 1000)
    assert 5 < len(expected[1].boxes) < 100
    check(run(dense_detections)(outputs=outputs, sizes=SIZES), expected, 100)


def test_proposals() -> None:
    """Per level the best 200, NMS at 0.7 of their own, then the best 150 of all levels."""
    rng = np.random.default_rng(1)
    strides = (4, 8, 16, 32, 64)
    outputs = []
    for i, stride in enumerate(strides):
        height, width = -(-128 // stride), -(-160 // stride)
        logits = logits_of(rng, 2, height, width, 3, low=0.001 + 1e-6 * i)
        outputs.append((logits, 0.5 * rng.standard_normal((2, height, width, 12), np.float32)))
    expected = []
    for image, size in enumerate(SIZES):
        survivors: list[tuple[float, int, np.ndarray]] = []
        for (logits, deltas), stride in zip(outputs, strides, strict=True):
            anchors = anchors_of(stride, (8.0,), *logits.shape[1:3])
            scores = sigmoid(logits[image].astype(np.float64)).reshape(-1)
            moves = deltas[image].reshape(-1, 4).astype(np.float64)
            rows = sorted(range(len(anchors)), key=lambda row: -scores[row])[:200]
            boxes = {row: decoded(anchors[row], moves[row], size) for row in rows}
            candidates = [(scores[row], 0, box) for row, box in boxes.items() if has_area(box)]
            kept = best(candidates, 0.7, len(candidates))
            survivors += [(score, stride, box) for score, box in zip(kept.scores, kept.boxes, strict=True)]
        survivors = sorted(survivors, key=lambda survivor: -survivor[0])[:150]
        scores, levels, boxes = zip(*survivors, strict=True)
        expected.append(Found(np.array(boxes), np.array(scores), np.array(levels)))
    assert [len(truth.boxes) for truth in expected] == [150, 150]
    check(jax.jit(proposals, static_argnums=(2, 3))(outputs, SIZES, 200, 150), expected, 150)

    small = [(logits[:, :2, :2], deltas[:, :2, :2]) for logits, deltas in outputs]
    few = jax.jit(proposals, static_argnums=(2, 3))(small, SIZES, 200, 1000)
    assert few.boxes.shape == (2, 5 * 12, 4)  # all anchors


@pytest.fixture(scope="module")
def regions() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    corners = rng.uniform(0, 60, (2, 90, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(4, 40, (2, 90, 2))], axis=-1)
    valid = np.arange(90) < np.array([[90], [12]])
    return {
        "logits": (2 * rng.standard_normal((2, 90, CLASSES + 1))).astype(np.float32),
        "deltas": rng.standard_normal((2, 90, 4 * CLASSES)).astype(np.float32),
        "boxes": (boxes * valid[..., None]).astype(np.float32),
        "valid": valid,
    }


def truth_of_regions(regions: dict[str, np.ndarray]) -> list[Found]:
    """Softmax, of which the last is background; a box for each class; above 0.05; NMS at 0.5; the best 100."""
    expected = []
    for image, size in enumerate(SIZES):
        powers = np.exp(regions["logits"][image].astype(np.float64))
        scores = powers / powers.sum(axis=-1, keepdims=True)
        candidates = []
        for i in np.flatnonzero(regions["valid"][image]):
            for label in range(CLASSES):
                delta = regions["deltas"][image, i, 4 * label : 4 * label + 4] * (0.1, 0.1, 0.2, 0.2)
                if scores[i, label] > 0.05:
                    box = decoded(regions["boxes"][image, i].astype(np.float64), delta, size)
                    candidates.append((scores[i, label], label, box))
        expected.append(best(candidates, 0.5, 100))
    return expected


def test_regions(regions: dict[str, np.ndarray]) -> None:
    expected = truth_of_regions(regions)
    assert len(expected[0].boxes) == 100
    assert 5 < len(expected[1].boxes) < 36
    check(jax.jit(region_detections)(**regions, sizes=SIZES), expected, 100)


def test_no_region_is_no_detection(regions: dict[str, np.ndarray]) -> None:
    found = jax.jit(region_detections)(**(regions | {"valid": np.zeros((2, 90), bool)}), sizes=SIZES)
    assert not np.asarray(found.valid).any()
    assert not np.asarray(found.boxes).any()


def test_the_bound_on_pairs_changes_nothing_where_a_hundred_survive(
    regions: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = truth_of_regions(regions)
    monkeypatch.setattr(roi_heads, "MAX_PAIRS", 180)
    first = {name: array[:1].repeat(2, axis=0) for name, array in regions.items()}
    check(run(region_detections)(**first, sizes=SIZES[:1].repeat(2, axis=0)), [expected[0]] * 2, 100)


def test_masks_are_of_their_label() -> None:
    logits = np.random.default_rng(3).standard_normal((1, 2, 28, 28, CLASSES), np.float32)
    found = mask_probabilities(logits, np.array([[2, 0]], np.int32))
    np.testing.assert_allclose(found[0, 0], sigmoid(logits[0, 0, ..., 2]), rtol=1e-5)
    np.testing.assert_allclose(found[0, 1], sigmoid(logits[0, 1, ..., 0]), rtol=1e-5)


def test_no_images_are_no_detections() -> None:
    def shape(*sides: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sides, np.float32)

    sizes = jax.ShapeDtypeStruct((0, 2), np.int32)
    dense = jax.eval_shape(dense_detections, [(shape(0, 2, 3, 9 * CLASSES), shape(0, 2, 3, 36))] * 5, sizes)
    assert (dense.boxes.shape, dense.valid.shape) == ((0, 100, 4), (0, 100))
    dtypes = DTypes(dtype=np.float32, param_dtype=np.float32)
    box_head = abstract_model(lambda rngs: BoxHead(CLASSES, 8, 8, dtypes=dtypes, rngs=rngs))
    mask_head = abstract_model(lambda rngs: MaskHead(CLASSES, 8, 8, dtypes=dtypes, rngs=rngs))
    logits, deltas = jax.eval_shape(BoxHead.on_regions, box_head, shape(0, 5, 7, 7, 8))
    assert (logits.shape, deltas.shape) == ((0, 5, CLASSES + 1), (0, 5, 4 * CLASSES))
    masks = jax.eval_shape(MaskHead.on_regions, mask_head, shape(0, 5, 14, 14, 8))
    assert masks.shape == (0, 5, 28, 28, CLASSES)
