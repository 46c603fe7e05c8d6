"""Losses and targets against loops in NumPy that follow mmdet 2.8's rules, box by box and in float64."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.tasks.detection import losses
from train.tasks.detection.losses import RoIs, Truth
from twins_jax.detection.anchors import RETINANET_ANCHORS, RPN_ANCHORS, Anchors
from twins_jax.detection.assign import BACKGROUND, IGNORED

RNG = np.random.default_rng(0)
CLASSES, IMAGES, GROUP = 3, 4, 2
PADDED = (96, 128)
SIZES = np.array([[96, 128], [33, 40], [64, 128], [90, 60]], np.int32)
COUNTS = (4, 2, 0, 3)
"""Objects of each image; the arrays have places for five."""


def make_truth() -> Truth:
    """Boxes of 10 to 60 pixels within their images; padding holds zeros."""
    boxes, labels = np.zeros((IMAGES, 5, 4), np.float32), np.zeros((IMAGES, 5), np.int32)
    valid = np.zeros((IMAGES, 5), bool)
    for image, count in enumerate(COUNTS):
        height, width = SIZES[image]
        for i in range(count):
            w, h = RNG.uniform(10, min(60, width - 1)), RNG.uniform(10, min(60, height - 1))
            x, y = RNG.uniform(0, width - w), RNG.uniform(0, height - h)
            boxes[image, i] = x, y, x + w, y + h
            labels[image, i] = RNG.integers(CLASSES)
        valid[image, :count] = True
    return Truth(boxes, labels, valid, SIZES)


TRUTH = make_truth()


def shapes_of(anchors: Anchors) -> list[tuple[int, int]]:
    return [tuple(-(-side // stride) for side in PADDED) for stride in anchors.strides]  # type: ignore[misc]


def make_outputs(anchors: Anchors, channels: int) -> list[tuple[np.ndarray, np.ndarray]]:
    per_cell = anchors.per_cell
    return [
        tuple(RNG.standard_normal((IMAGES, *shape, per_cell * width), np.float32) for width in (channels, 4))
        for shape in shapes_of(anchors)
    ]  # type: ignore[misc]


def in_order(outputs: Sequence[tuple[np.ndarray, np.ndarray]], part: int, width: int) -> np.ndarray:
    """The outputs of all anchors, [B, A, width]: level, row, column, anchor."""
    return np.concatenate([level[part].reshape(IMAGES, -1, width) for level in outputs], axis=1).astype(np.float64)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """In float32, whose rounding decides which IoUs are equal."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = np.float32(max(width, 0)) * np.float32(max(height, 0))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return float(both / max(union, np.float32(1e-6)))


def assigned_to(boxes: np.ndarray, truth: np.ndarray, pos: float, neg: float, min_pos: float) -> list[int]:
    """`MaxIoUAssigner.assign_wrt_overlaps`, candidate by candidate."""
    if not len(truth):
        return [BACKGROUND] * len(boxes)
    table = np.array([[iou(box, each) for each in truth] for box in boxes])
    found = [IGNORED] * len(boxes)
    for i, row in enumerate(table):
        if row.max() < neg:
            found[i] = BACKGROUND
        if row.max() >= pos:
            found[i] = int(row.argmax())
    for g in range(len(truth)):
        best = table[:, g].max()
        if best >= min_pos:
            for i in np.flatnonzero(table[:, g] == best):
                found[i] = g
    return found


def deltas_to(box: np.ndarray, anchor: np.ndarray, stds: Sequence[float]) -> np.ndarray:
    box, anchor = box.astype(np.float64), anchor.astype(np.float64)
    sides, own = box[2:] - box[:2], anchor[2:] - anchor[:2]
    shift = ((box[:2] + box[2:]) / 2 - (anchor[:2] + anchor[2:]) / 2) / own
    return np.concatenate([shift, np.log(sides / own)]) / stds


def cross_entropy(logit: float, target: bool) -> float:
    return math.log1p(math.exp(-logit if target else logit))


def cells_inside(anchors: Anchors, size: np.ndarray) -> np.ndarray:
    """`AnchorGenerator.valid_flags` for the image's own shape, padded to 32."""
    flags = []
    for stride, (height, width) in zip(anchors.strides, shapes_of(anchors), strict=True):
        limits = [math.ceil(math.ceil(side / 32) * 32 / stride) for side in size]
        for y in range(height):
            for x in range(width):
                flags += [y < limits[0] and x < limits[1]] * anchors.per_cell
    return np.array(flags)


def assigned_anchors(anchors: Anchors, image: int, *thresholds: float) -> tuple[np.ndarray, list[int]]:
    """The anchors of all levels, and the assignment of each; IGNORED outside of the image's own shape."""
    boxes = np.concatenate(anchors.levels(shapes_of(anchors)))
    inside = cells_inside(anchors, SIZES[image])
    found = np.full(len(boxes), IGNORED)
    found[inside] = assigned_to(boxes[inside], TRUTH.boxes[image, : COUNTS[image]], *thresholds)
    return boxes, found.tolist()


def by_group(sums: Sequence[float], counts: Sequence[float]) -> float:
    """Of each group of two images the sum over the count, averaged."""
    groups = range(0, IMAGES, GROUP)
    return float(np.mean([sum(sums[i : i + GROUP]) / max(sum(counts[i : i + GROUP]), 1) for i in groups]))


def values(found: dict[str, Any]) -> dict[str, float]:
    assert all(value.dtype == np.float32 and value.shape == () for value in found.values())
    return {name: float(value) for name, value in found.items()}


def test_retinanet() -> None:
    outputs = make_outputs(RETINANET_ANCHORS, CLASSES)
    logits, deltas = in_order(outputs, 0, CLASSES), in_order(outputs, 1, 4)
    focal, l1, positives = [0.0] * IMAGES, [0.0] * IMAGES, [0.0] * IMAGES
    kinds = set()
    for image in range(IMAGES):
        anchors, found = assigned_anchors(RETINANET_ANCHORS, image, 0.5, 0.4, 0.0)
        positives[image] = max(sum(g >= 0 for g in found), 1)
        for i, g in enumerate(found):
            kinds.add(min(g, 0))
            if g == IGNORED:
                continue
            for k in range(CLASSES):
                is_own = g >= 0 and TRUTH.labels[image, g] == k
                logit = logits[image, i, k]
                p = 1 / (1 + math.exp(-logit))
                alpha, miss = (0.25, 1 - p) if is_own else (0.75, p)
                focal[image] += alpha * miss**2 * cross_entropy(logit, is_own)
            if g >= 0:
                target = deltas_to(TRUTH.boxes[image, g], anchors[i], (1, 1, 1, 1))
                l1[image] += float(np.abs(deltas[image, i] - target).sum())
    assert kinds == {0, BACKGROUND, IGNORED}
    expected = {"loss_cls": by_group(focal, positives), "loss_bbox": by_group(l1, positives)}
    found, whole = jax.jit(lambda outputs: [losses.retinanet_losses(outputs, TRUTH, size) for size in (GROUP, IMAGES)])(
        outputs
    )
    assert values(found) == pytest.approx(expected, rel=1e-5)
    assert float(whole["loss_cls"]) == pytest.approx(sum(focal) / sum(positives), rel=1e-5)
    assert abs(float(whole["loss_cls"]) / expected["loss_cls"] - 1) > 0.01  # groups matter


def test_an_object_smaller_than_all_anchors_has_the_nearest_ones() -> None:
    """Its IoU with anchors of 32 pixels is 0.14 at most."""
    boxes = np.array([[[40, 40, 52, 52]]], np.float32)
    truth = Truth(boxes, np.zeros((1, 1), np.int32), np.ones((1, 1), bool), np.array([PADDED], np.int32))
    outputs = [(logits[:1], np.ones_like(d[:1])) for logits, d in make_outputs(RETINANET_ANCHORS, CLASSES)]
    assert float(jax.jit(losses.retinanet_losses, static_argnums=2)(outputs, truth, 1)["loss_bbox"]) > 1


@pytest.fixture
def no_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RPN_SAMPLES", "RPN_POSITIVES"):
        monkeypatch.setattr(losses, name, 10_000)


@pytest.mark.usefixtures("no_sampling")
def test_rpn_of_all_anchors() -> None:
    outputs = make_outputs(RPN_ANCHORS, 1)
    logits, deltas = in_order(outputs, 0, 1), in_order(outputs, 1, 4)
    entropy, l1, counts = [0.0] * IMAGES, [0.0] * IMAGES, [0.0] * IMAGES
    for image in range(IMAGES):
        anchors, found = assigned_anchors(RPN_ANCHORS, image, 0.7, 0.3, 0.3)
        counts[image] = max(sum(g >= 0 for g in found), 1) + max(found.count(BACKGROUND), 1)
        for i, g in enumerate(found):
            if g != IGNORED:
                entropy[image] += cross_entropy(logits[image, i, 0], g >= 0)
            if g >= 0:
                target = deltas_to(TRUTH.boxes[image, g], anchors[i], (1, 1, 1, 1))
                l1[image] += float(np.abs(deltas[image, i] - target).sum())
    expected = {"loss_rpn_cls": by_group(entropy, counts), "loss_rpn_bbox": by_group(l1, counts)}
    found = jax.jit(lambda outputs: losses.rpn_losses(outputs, TRUTH, jax.random.key(0), GROUP))(outputs)
    assert values(found) == pytest.approx(expected, rel=1e-5)


def test_rpn_samples_256_anchors_of_which_half_are_positive() -> None:
    """With logits that are 0 every sample adds log 2, and with deltas that are wrong by a lot every positive adds."""
    assert (losses.RPN_SAMPLES, losses.RPN_POSITIVES) == (256, 128)
    outputs = [(np.zeros_like(logits), np.full_like(d, 1e4)) for logits, d in make_outputs(RPN_ANCHORS, 1)]
    found = values(jax.jit(lambda outputs: losses.rpn_losses(outputs, TRUTH, jax.random.key(0), GROUP))(outputs))
    # The image without objects has 256 negatives, and counts a positive beside them.
    assert found["loss_rpn_cls"] == pytest.approx(math.log(2) * (1 + 512 / 513) / 2, rel=1e-6)
    positives = [min(128, sum(g >= 0 for g in assigned_anchors(RPN_ANCHORS, i, 0.7, 0.3, 0.3)[1])) for i in range(4)]
    expected = by_group([n * 4e4 for n in positives], [256, 256, 257, 256])
    assert found["loss_rpn_bbox"] == pytest.approx(expected, rel=1e-3)


def make_proposals() -> tuple[np.ndarray, np.ndarray]:
    """Near the objects and anywhere; some are padding, on top of an object."""
    proposals = np.zeros((IMAGES, 30, 4), np.float32)
    for image, count in enumerate(COUNTS):
        for i in range(30):
            if i % 2 and count:
                proposals[image, i] = TRUTH.boxes[image, i % count] + RNG.uniform(-6, 6, 4)
            else:
                x, y = RNG.uniform(0, 60, 2)
                proposals[image, i] = x, y, x + RNG.uniform(5, 60), y + RNG.uniform(5, 40)
    valid = np.arange(30) < np.array([[30], [25], [20], [30]])
    return proposals, valid


PROPOSALS, VALID = make_proposals()


def expected_rois(image: int) -> list[tuple[tuple[float, ...], int]]:
    """The ground truths, each its own, and the proposals, assigned among themselves."""
    truth = TRUTH.boxes[image, : COUNTS[image]]
    proposals = PROPOSALS[image][VALID[image]]
    found = [*range(len(truth)), *assigned_to(proposals, truth, 0.5, 0.5, 0.5)]
    return [(tuple(box.tolist()), g) for box, g in zip([*truth, *proposals], found, strict=True)]


def test_rois_are_the_ground_truths_and_the_proposals() -> None:
    """More samples than there are boxes."""
    rois = jax.jit(lambda *arrays: losses.sample_rois(*arrays, TRUTH, jax.random.key(0), 256))(PROPOSALS, VALID)
    for image in range(IMAGES):
        boxes, assigned, valid = (np.asarray(each[image]) for each in rois)
        found = [(tuple(box.tolist()), g) for box, g in zip(boxes[valid], assigned[valid].tolist(), strict=True)]
        assert sorted(found) == sorted(expected_rois(image))
        assert (assigned[~valid] == IGNORED).all()
        is_positive = np.asarray(rois.is_positive[image])
        assert is_positive.tolist() == sorted(is_positive.tolist(), reverse=True)  # the mask head takes the first


def test_a_quarter_of_the_sampled_boxes_is_positive_at_most() -> None:
    rois = jax.jit(lambda *arrays: losses.sample_rois(*arrays, TRUTH, jax.random.key(0), 8))(PROPOSALS, VALID)
    assert np.asarray(rois.valid).all()
    assert np.asarray(rois.is_positive).sum(axis=1).tolist() == [2 if count else 0 for count in COUNTS]


def test_a_ground_truth_does_not_compete_for_its_best_proposal() -> None:
    """The proposal belongs to the first object by its IoU, and to the second because it is the second's best."""
    boxes = np.array([[[0, 0, 100, 100], [0, 0, 100, 140]]], np.float32)
    proposals = np.array([[[0, 0, 100, 112]]], np.float32)
    truth = Truth(boxes, np.zeros((1, 2), np.int32), np.ones((1, 2), bool), np.array([[200, 200]], np.int32))
    rois = jax.jit(losses.sample_rois, static_argnums=4)(proposals, np.ones((1, 1), bool), truth, jax.random.key(0), 16)
    assert rois.assigned.shape == (1, 16)
    found = dict(zip(map(tuple, np.asarray(rois.boxes)[0, :3].tolist()), rois.assigned[0, :3].tolist(), strict=True))
    assert found == {(0, 0, 100, 100): 0, (0, 0, 100, 140): 1, (0, 0, 100, 112): 1}


def rois_of(count: int) -> RoIs:
    """RoIs of fixed assignments: `count` places, the last ones padding."""
    boxes = np.zeros((IMAGES, count, 4), np.float32)
    assigned = np.full((IMAGES, count), IGNORED, np.int32)
    for image in range(IMAGES):
        found = sorted(expected_rois(image), key=lambda roi: roi[1] < 0)[: count - 1]
        boxes[image, : len(found)] = [box for box, _ in found]
        assigned[image, : len(found)] = [g for _, g in found]
    return RoIs(boxes, assigned, assigned != IGNORED)


def test_box_head() -> None:
    rois = rois_of(24)
    logits = RNG.standard_normal((IMAGES, 24, CLASSES + 1), np.float32)
    deltas = RNG.standard_normal((IMAGES, 24, 4 * CLASSES), np.float32)
    entropy, l1 = [0.0] * IMAGES, [0.0] * IMAGES
    for image in range(IMAGES):
        for i in np.flatnonzero(rois.valid[image]):
            g = rois.assigned[image, i]
            label = TRUTH.labels[image, g] if g >= 0 else CLASSES
            row = logits[image, i].astype(np.float64)
            entropy[image] += float(np.log(np.exp(row).sum()) - row[label])
            if g >= 0:
                target = deltas_to(TRUTH.boxes[image, g], rois.boxes[image, i], (0.1, 0.1, 0.2, 0.2))
                l1[image] += float(np.abs(deltas[image, i, 4 * label : 4 * label + 4] - target).sum())
    counts = rois.valid.sum(axis=1).tolist()
    expected = {"loss_cls": by_group(entropy, counts), "loss_bbox": by_group(l1, counts)}
    found = jax.jit(lambda *arrays: losses.box_head_losses(*arrays, rois, TRUTH, GROUP))(logits, deltas)
    assert values(found) == pytest.approx(expected, rel=1e-5)


def test_masks() -> None:
    rois = rois_of(12)
    logits = RNG.standard_normal((IMAGES, 12, 4, 4, CLASSES), np.float32)
    targets = (RNG.random((IMAGES, 12, 4, 4)) < 0.5).astype(np.float32)
    sums, counts = [0.0] * IMAGES, [0] * IMAGES
    for image in range(IMAGES):
        for i in np.flatnonzero(rois.assigned[image] >= 0):
            own = logits[image, i, :, :, TRUTH.labels[image, rois.assigned[image, i]]].astype(np.float64)
            sums[image] += float(np.mean(np.log1p(np.exp(np.where(targets[image, i] == 1, -own, own)))))
            counts[image] += 1
    found = jax.jit(lambda logits: losses.mask_loss(logits, targets, rois, TRUTH, GROUP))(logits)
    assert float(found) == pytest.approx(by_group(sums, counts), rel=1e-5)
    nothing = rois._replace(assigned=np.full_like(rois.assigned, BACKGROUND))
    assert float(losses.mask_loss(logits, targets, nothing, TRUTH, GROUP)) == 0


@pytest.mark.parametrize("loss", ["retinanet", "rpn", "box_head"])
def test_gradients_are_finite_and_none_comes_from_padding(loss: str) -> None:
    """Zero boxes of padding, whose targets would be infinite, and an image without any object."""
    of_retinanet: Callable[..., Any] = lambda outputs: losses.retinanet_losses(outputs, TRUTH, GROUP)  # noqa: E731
    of_rpn: Callable[..., Any] = lambda outputs: losses.rpn_losses(outputs, TRUTH, jax.random.key(0), GROUP)  # noqa: E731
    rois = rois_of(24)
    compute, arguments = {
        "retinanet": (of_retinanet, make_outputs(RETINANET_ANCHORS, CLASSES)),
        "rpn": (of_rpn, make_outputs(RPN_ANCHORS, 1)),
        "box_head": (
            lambda outputs: losses.box_head_losses(*outputs, rois, TRUTH, GROUP),
            [np.zeros((IMAGES, 24, CLASSES + 1), np.float32), np.zeros((IMAGES, 24, 4 * CLASSES), np.float32)],
        ),
    }[loss]
    gradient = jax.jit(jax.grad(lambda outputs: sum(compute(outputs).values(), jnp.zeros(()))))(arguments)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    if loss == "box_head":
        assert not np.asarray(gradient[0])[~rois.valid].any()
        assert np.asarray(gradient[0])[rois.valid].any(axis=-1).all()
    else:
        finest = np.asarray(gradient[0][0])[1]  # the second image is padded to 64 x 64
        stride = (RETINANET_ANCHORS if loss == "retinanet" else RPN_ANCHORS).strides[0]
        assert not finest[64 // stride :].any()
        assert not finest[:, 64 // stride :].any()
        assert finest[: 64 // stride, : 64 // stride].any()


def test_a_batch_smaller_than_a_group_is_one() -> None:
    found = losses.grouped_mean(jnp.array([3.0]), jnp.array([2]), 4)
    assert float(found) == 1.5
    assert float(losses.grouped_mean(jnp.array([3.0, 1.0]), jnp.array([0, 0]), 2)) == 4
