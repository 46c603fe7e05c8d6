"""RoIAlign against mmcv's rule in PyTorch, sample by sample in float64, and against ONNX Runtime's operator."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.models import relative_error
from twins_jax import InputError
from twins_jax.detection import roi_align as module
from twins_jax.detection.roi_align import pyramid_roi_align, roi_align, roi_levels

torch = pytest.importorskip("torch")

STRIDES = (4, 8, 16, 32)
BOXES = np.array(
    [
        (8, 8, 64, 40),
        (3.3, 5.1, 17.9, 61.7),
        (0, 0, 120, 88),  # the whole map
        (-30, -20, 30, 20),  # samples more than a cell before the map
        (100, 70, 180, 130),  # samples more than a cell behind it
        (-3, -3, -1, -1),
        (118, 86, 122, 90),
        (-50, 20, 170, 24),  # many samples a bin along one axis, one along the other
        (40, -40, 44, 128),
        (20, 20, 20.001, 20.001),
        (20, 20, 20, 40),  # no width
        (20, 20, 20, 20),
        (40, 40, 20, 20),  # reversed
        (0, 0, 0, 0),
        (300, 300, 340, 340),
        (14, 14, 42, 42),  # bins of exactly one cell
        (14, 14, 42.001, 42.001),
    ],
    np.float64,
)
"""In pixels, for a map of 22 x 30 cells at stride 4."""


def axis_samples(start: float, length: float, bins: int, size: int) -> tuple[Any, ...]:
    """Bin, cells before and behind, and weight of the second, of each sample inside [-1, size]; and samples a bin."""
    count = math.ceil(length / bins)
    samples = []
    for p in range(bins):
        for k in range(count):
            y = start + p * (length / bins) + (k + 0.5) * (length / bins) / count
            if -1 <= y <= size:
                y = max(y, 0)
                low = min(int(y), size - 1)
                high = min(low + 1, size - 1)
                samples.append((p, low, high, 0.0 if low == high else y - low))
    columns = np.array(samples, np.float64).reshape(-1, 4).T
    return (*(torch.from_numpy(column).long() for column in columns[:3]), torch.from_numpy(columns[3]), count)


def reference(features: Any, boxes: np.ndarray, bins: int, scale: float) -> Any:
    """mmcv's `roi_align` of features [H, W, C] with `aligned=True` and `sampling_ratio=0`: [N, P, P, C]."""
    height, width, channels = features.shape
    results = []
    for x1, y1, x2, y2 in (box * scale - 0.5 for box in boxes):
        p, top, bottom, v, rows = axis_samples(y1, y2 - y1, bins, height)
        q, left, right, u, columns = axis_samples(x1, x2 - x1, bins, width)
        total = features.new_zeros(bins * bins, channels)
        if len(p) and len(q):
            u, v = u[None, :, None], v[:, None, None]
            upper = features[top][:, left] * (1 - u) + features[top][:, right] * u
            lower = features[bottom][:, left] * (1 - u) + features[bottom][:, right] * u
            values = (upper * (1 - v) + lower * v).reshape(-1, channels)
            total = total.index_add(0, (p[:, None] * bins + q[None]).reshape(-1), values)
        results.append((total / max(rows * columns, 1)).reshape(bins, bins, channels))
    return torch.stack(results)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def random_boxes(number: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Boxes of all sizes and shapes, some of which stick out of an image."""
    rng = np.random.default_rng(seed)
    sides = np.exp(rng.uniform(np.log(2), np.log([width, height]), (number, 2)))
    corner = rng.uniform(-0.1, 0.9, (number, 2)) * [width, height]
    return np.concatenate([corner, corner + sides], axis=1)


def values_and_gradient(function: Callable[[Any], jax.Array], x: Any, cotangent: np.ndarray) -> tuple[jax.Array, Any]:
    """The values of a function of x and the product of its derivative with a cotangent, by one program."""

    def run(x: Any, cotangent: jax.Array) -> tuple[jax.Array, Any]:
        values, transpose = jax.vjp(function, x)
        return values, transpose(cotangent)[0]

    result: tuple[jax.Array, Any] = jax.jit(run)(x, cotangent)
    return result


@pytest.mark.parametrize("bins", [7, 2])
def test_values_and_gradient(bins: int) -> None:
    """The weights of the gradient's samples are those of the values: boxes of every kind are in both."""
    features, cotangent = draw(22, 30, 5), draw(len(BOXES), bins, bins, 5, seed=1)
    with jax.enable_x64(True):
        boxes = jnp.asarray(BOXES)
        values, gradient = values_and_gradient(
            lambda x: roi_align(x, boxes, output_size=bins, scale=0.25), features, cotangent
        )
    tensor = torch.from_numpy(features).requires_grad_()
    expected = reference(tensor, BOXES, bins, 0.25)
    (expected * torch.from_numpy(cotangent)).sum().backward()
    assert values.dtype == gradient.dtype == np.float64
    np.testing.assert_allclose(values, expected.detach().numpy(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=0, atol=1e-13)
    assert [not box.any() for box in np.asarray(values)] == [False] * 10 + [True] * 5 + [False] * 2


def test_onnx_runtime() -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    node = onnx.helper.make_node(
        "RoiAlign",
        ["x", "rois", "index"],
        ["y"],
        output_height=7,
        output_width=7,
        spatial_scale=0.25,
        sampling_ratio=0,
        coordinate_transformation_mode="half_pixel",
    )
    info, real = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    inputs = [
        info("x", real, (1, 3, 22, 30)),
        info("rois", real, ("n", 4)),
        info("index", onnx.TensorProto.INT64, ("n",)),
    ]
    graph = onnx.helper.make_graph([node], "roi_align", inputs, [info("y", real, ("n", 3, 7, 7))])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 16)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    features = draw(22, 30, 3).astype(np.float32)
    with_area = (BOXES[:, 2:] > BOXES[:, :2]).all(axis=1)
    boxes = np.concatenate([BOXES[with_area], random_boxes(200, 88, 120)]).astype(np.float32)
    given = {"x": features.transpose(2, 0, 1)[None], "rois": boxes, "index": np.zeros(len(boxes), np.int64)}
    theirs = session.run(None, given)[0].transpose(0, 2, 3, 1)
    with jax.default_matmul_precision("float32"):
        found = jax.jit(lambda x, boxes: roi_align(x, boxes, output_size=7, scale=0.25))(features, boxes)
    exact = reference(torch.from_numpy(features).double(), boxes.astype(np.float64), 7, 0.25).numpy()
    assert relative_error(theirs, exact) < 1e-5
    assert relative_error(found, exact) < relative_error(theirs, exact)


def test_pyramid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each box is read from its own map of its own image, in chunks of any size, and gives its gradient to it."""
    shapes = [(64, 48), (32, 24), (16, 12), (8, 6)]
    maps = [draw(2, *shape, 3, seed=level) for level, shape in enumerate(shapes)]
    boxes = np.stack([random_boxes(40, 256, 192), random_boxes(40, 256, 192, seed=1)])
    boxes[0, :2] = (-200, -150, 260, 300), (-50, -50, 200, 250)
    boxes[1, :, 2:] = boxes[1, :, :2] + 20  # all on the finest map
    cotangent = draw(2, 40, 7, 7, 3, seed=4)

    def run(maps: list[jax.Array]) -> jax.Array:
        return pyramid_roi_align(maps, jnp.asarray(boxes), output_size=7)

    tensors = [torch.from_numpy(x).requires_grad_() for x in maps]
    sides = boxes[..., 2:] - boxes[..., :2]
    levels = np.clip(np.floor(np.log2(np.sqrt(sides.prod(axis=-1)) / 56 + 1e-6)), 0, 3).astype(int)
    assert np.unique(levels[0]).tolist() == [0, 1, 2, 3]
    assert not levels[1].any()
    expected = torch.stack(
        [
            torch.cat([reference(tensors[k][b], boxes[b, i, None], 7, 1 / STRIDES[k]) for i, k in enumerate(levels[b])])
            for b in range(2)
        ]
    )
    (expected * torch.from_numpy(cotangent)).sum().backward()
    for elements in (2**22, 13 * 7 * 48 * 3):  # all at once; 13, 26 and 40 boxes a chunk
        monkeypatch.setattr(module, "CHUNK_ELEMENTS", elements)
        with jax.enable_x64(True):
            values, gradients = values_and_gradient(run, maps, cotangent)
        np.testing.assert_allclose(values, expected.detach().numpy(), rtol=0, atol=1e-13)
        for gradient, tensor in zip(gradients, tensors, strict=True):
            np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=0, atol=1e-12)


def test_memory_is_bounded() -> None:
    """Beyond what every formulation holds, it does not grow with the boxes once they fill a chunk."""

    def temporary(number: int) -> int:
        def loss(features: jax.Array, boxes: jax.Array) -> jax.Array:
            return (roi_align(features, boxes, output_size=7, scale=0.25) ** 2).sum()

        shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((128, 128, 64), (number, 4))]
        analysis = jax.jit(jax.grad(loss)).lower(*shapes).compile().memory_analysis()
        return analysis.temp_size_in_bytes - 2 * 4 * number * 7 * 7 * 64  # values and their cotangent

    assert temporary(4096) < temporary(1024) + 2**20


def test_levels() -> None:
    sides = np.float32([0, 1, 56, 111.99, 112, 112.01, 223.99, 224, 447.9, 448, 448.01, 5000])
    boxes = np.stack([np.full_like(sides, 7), np.full_like(sides, 9), 7 + sides, 9 + sides], axis=1)
    found = roi_levels(
        jnp.asarray(np.concatenate([boxes, np.float32([(9, 9, 5, 20), (0, 0, 112, 112), (0, 0, 28, 448)])]))
    )
    assert found.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 0, 1, 1]
    assert found.dtype == np.int32


def test_bfloat16_is_rounded_once() -> None:
    features = jnp.asarray(draw(22, 30, 4), jnp.bfloat16)
    boxes = jnp.asarray(BOXES, jnp.float32)

    @jax.jit
    def run(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        values, transpose = jax.vjp(lambda x: roi_align(x, boxes, output_size=2, scale=0.25), x)
        wide = roi_align(x.astype(jnp.float32), boxes, output_size=2, scale=0.25)
        return values, wide.astype(x.dtype), transpose(jnp.ones_like(values))[0]

    with jax.default_matmul_precision("float32"), jax.numpy_rank_promotion("raise"):
        found, wide, gradient = run(features)
    assert found.dtype == gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, wide)


def test_shapes() -> None:
    maps = [jnp.ones((1, 8 >> level, 8 >> level, 2)) for level in range(4)]
    assert pyramid_roi_align(maps, jnp.zeros((1, 0, 4)), output_size=7).shape == (1, 0, 7, 7, 2)
    with pytest.raises(InputError, match=r"^levels=3: must be as many maps as strides, 4$"):
        pyramid_roi_align(maps[:3], jnp.zeros((1, 5, 4)), output_size=7)
