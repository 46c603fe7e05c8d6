"""Suppression against ONNX Runtime's NonMaxSuppression, and the greedy loop with ties of every kind."""

from functools import partial

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.boxes import iou_matrix, on_a_grid
from twins_jax.detection import nms as module
from twins_jax.detection.nms import NMSResult, nms

COUNT = 700
"""Boxes in tests of many: more than two tiles, and no multiple of a tile."""


@partial(jax.jit, static_argnames="max_outputs")  # one program for all thresholds
def compiled(
    boxes: jax.Array,
    scores: jax.Array,
    labels: jax.Array | None,
    valid: jax.Array,
    iou_threshold: float,
    max_outputs: int,
) -> NMSResult:
    return nms(boxes, scores, labels, valid, iou_threshold=iou_threshold, max_outputs=max_outputs)


def kept(result: NMSResult) -> list[int]:
    """The boxes kept; the rest of the result must be empty."""
    indices, valid = (np.asarray(x) for x in result)
    assert (indices.dtype, valid.dtype) == (np.int32, bool)
    np.testing.assert_array_equal(valid, np.arange(len(valid)) < valid.sum())
    assert not indices[~valid].any()
    return list(indices[valid].tolist())


def greedy(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, valid: np.ndarray, threshold: float) -> list[int]:
    iou, result = iou_matrix(boxes, boxes), list[int]()
    for i in sorted(np.flatnonzero(valid).tolist(), key=lambda i: (-scores[i], i)):
        if all(labels[i] != labels[j] or iou[j, i] <= np.float32(threshold) for j in result):
            result.append(i)
    return result


def draw(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    center, size = rng.uniform(0, 200, (COUNT, 2)), rng.uniform(10, 90, (COUNT, 2))
    boxes = np.concatenate([center - size / 2, center + size / 2], axis=1).astype(np.float32)
    return boxes, rng.permutation(COUNT).astype(np.float32) / COUNT + 0.001, rng.integers(0, 5, COUNT, np.int32)


@pytest.fixture(scope="session")
def onnx_nms() -> "ort.InferenceSession":  # noqa: F821
    ort = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    names = ["boxes", "scores", "most", "iou_threshold", "score_threshold"]
    shapes: list[list[int | str]] = [[1, "n", 4], [1, "c", "n"], [1], [1], [1]]
    kinds = [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, *[onnx.TensorProto.FLOAT] * 2]
    inputs = [onnx.helper.make_tensor_value_info(*value) for value in zip(names, kinds, shapes, strict=True)]
    output = onnx.helper.make_tensor_value_info("kept", onnx.TensorProto.INT64, ["m", 3])
    node = onnx.helper.make_node("NonMaxSuppression", names, ["kept"])
    graph = onnx.helper.make_graph([node], "nms", inputs, [output])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 11)], ir_version=8)
    return ort.InferenceSession(model.SerializeToString())


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("num_labels", [1, 5])
def test_as_onnx_runtime(onnx_nms: "ort.InferenceSession", threshold: float, num_labels: int) -> None:  # noqa: F821
    boxes, scores, labels = draw(0)
    labels %= num_labels
    by_class = np.where(labels == np.arange(num_labels)[:, None], scores, 0).astype(np.float32)
    feeds = {
        "boxes": boxes[None],
        "scores": by_class[None],
        "most": np.array([COUNT]),
        "iou_threshold": np.array([threshold], np.float32),
        "score_threshold": np.array([1e-6], np.float32),
    }
    expected = sorted(onnx_nms.run(None, feeds)[0][:, 2].tolist(), key=lambda i: -scores[i])
    valid = np.ones(COUNT, bool)
    assert kept(compiled(boxes, scores, labels, valid, threshold, COUNT)) == expected
    assert kept(compiled(boxes, scores, labels, valid, threshold, 20)) == expected[:20]


@hypothesis.given(
    boxes=on_a_grid(13),
    scores=st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75]), min_size=13, max_size=13),
    labels=st.lists(st.integers(0, 1), min_size=13, max_size=13),
    valid=st.lists(st.booleans(), min_size=13, max_size=13),
    threshold=st.sampled_from([0.0, 1 / 3, 0.5, 1.0]),
)
@hypothesis.settings(max_examples=120)
def test_ties_of_scores_and_of_the_threshold(
    boxes: np.ndarray, scores: list[float], labels: list[int], valid: list[bool], threshold: float
) -> None:
    arrays = boxes, np.array(scores, np.float32), np.array(labels, np.int32), np.array(valid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILE", 4)
        result = compiled(*arrays, threshold, 13)
    assert kept(result) == greedy(*arrays, threshold)


def test_a_chain_within_one_tile() -> None:
    """Each box suppresses the next alone: every second stays, after as many rounds as boxes."""
    x = np.arange(60, dtype=np.float32) * 4
    boxes = np.stack([x, 0 * x, x + 10, 0 * x + 10], axis=1)
    scores = -np.arange(60, dtype=np.float32)
    assert kept(compiled(boxes, scores, None, np.ones(60, bool), 0.4, 60)) == list(range(0, 60, 2))


def test_a_batch_of_images() -> None:
    boxes, scores, labels = (np.stack(x) for x in zip(*(draw(seed) for seed in range(3)), strict=True))
    valid = np.arange(COUNT)[None] < np.array([COUNT, 300, 0])[:, None]
    together = jax.vmap(lambda *x: compiled(*x, 0.5, 40))(*map(jnp.asarray, (boxes, scores, labels, valid)))
    for i in range(3):
        expected = greedy(boxes[i], scores[i], labels[i], valid[i], 0.5)[:40]
        assert kept(NMSResult(together.indices[i], together.valid[i])) == expected
