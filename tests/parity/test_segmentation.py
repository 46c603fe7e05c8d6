"""Semantic FPN and UPerNet against `torch_segmentation`, and that against transformers' UPerNet."""

import re
from collections.abc import Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx, traverse_util
from jax.typing import DTypeLike

import twins_jax
from tests.parity import torch_segmentation, torch_twins
from tests.parity.reference import Comparison, compare, load_backbone, precision, relative_error
from tests.parity.torch_segmentation import Head
from tests.parity.torch_twins import ARCHITECTURES, State
from twins_jax import ops
from twins_jax.config import DTypes
from twins_jax.segmentation.fcn import FCNHead
from twins_jax.segmentation.segmenter import HEADS, TrainingLogits, TwinsSegmenter, segmenter_config

CLASSES = 19
NARROW = 24
"""Channels of heads where upstream's 512 or 128 would prove nothing more."""

RENAMES: tuple[tuple[str, Any], ...] = (
    (r"^neck\.(\w+)\.(\d)\.conv", r"decode_head.neck.\1.\2"),
    (r"scale_heads\.(\d)\.(\d)", lambda found: f"scale_heads.{found[1]}.convs.{int(found[2]) // 2}"),
    (r"psp_modules\.(\d)\.1", r"pyramid_pooling.convs.\1"),
    (r"decode_head\.bottleneck", "decode_head.pyramid_pooling.bottleneck"),
    (r"auxiliary_head\.convs\.0", "auxiliary_head.conv"),
    (r"conv_seg", "classifier.conv"),
    (r"bn\.weight", "bn.scale"),
    (r"bn\.running_", "bn."),
    (r"weight", "kernel"),
)
"""From mmsegmentation's names to ours, by rules that know nothing of `twins_jax.port`."""


def ported(weights: State) -> dict[str, Any]:
    """Parameters and running statistics in our names and axes, in the dtype of the weights."""
    arrays = {}
    for name, tensor in weights.items():
        for pattern, ours in RENAMES:
            name = re.sub(pattern, ours, name)
        arrays[name] = (tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor).detach().numpy().copy()
    tree: dict[str, Any] = traverse_util.unflatten_dict(arrays, sep=".")
    return tree


def cast(weights: State, dtype: torch.dtype) -> State:
    return {name: tensor.to(dtype) for name, tensor in weights.items()}


def random_array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def leaves(tree: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()}


class Weights(NamedTuple):
    """Of the two segmenters on one backbone."""

    backbone: State
    upernet: State
    semantic_fpn: State

    def of(self, head: Head, dtype: torch.dtype) -> State:
        """A segmenter's state dict."""
        return cast(self.backbone | getattr(self, head), dtype)

    def ported(self) -> dict[str, Any]:
        """The parameters and running statistics of `Both`."""
        tensors = {name: tensor.detach() for name, tensor in self.backbone.items()}
        dtype = next(iter(tensors.values())).numpy().dtype
        heads = {head: ported(getattr(self, head)) for head in HEADS}
        # NNX gives the shared backbone the first of its paths, by the alphabet.
        heads["semantic_fpn"]["backbone"] = twins_jax.get_params(load_backbone(tensors, param_dtype=dtype))
        return heads


def random_weights(name: str, channels: int | None = None) -> Weights:
    """float32 weights of a backbone of `torch_twins.ARCHITECTURES`, and of heads with `channels`; None: upstream's."""
    dense = torch_twins.random_weights(name, stage_norms=ARCHITECTURES[name].window is not None)
    heads = {
        head: torch_segmentation.random_weights(
            head, ARCHITECTURES[name].dims, CLASSES, channels=channels, auxiliary_channels=channels
        )
        for head in HEADS
    }
    return Weights({f"backbone.{key}": tensor for key, tensor in dense.items()}, **heads)


class Both(nnx.Module):
    """Segmenters with either head on one backbone, whose compilation takes the time; without dropout."""

    def __init__(self, name: str, channels: int | None, dtype: DTypeLike) -> None:
        config = segmenter_config(name, dtype=dtype, param_dtype=dtype)
        self.upernet, self.semantic_fpn = (TwinsSegmenter(config, head, CLASSES, rngs=nnx.Rngs(0)) for head in HEADS)
        self.semantic_fpn.backbone = self.upernet.backbone
        if channels is not None:
            dims, common = config.embed_dims, {"dtypes": config.dtypes, "rngs": nnx.Rngs(0)}
            for head, make in HEADS.items():
                getattr(self, head).decode_head = make(dims, CLASSES, channels, **common)
            self.upernet.auxiliary_head = FCNHead(dims[2], CLASSES, channels, **common)
        for _, module in nnx.iter_graph(self):
            if isinstance(module, nnx.Dropout):
                module.rate = 0.0

    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        with self.computed_once(images):
            logits = {f"{head} logits": getattr(self, head)(images) for head in HEADS}
            logits |= {f"{head} decode": getattr(self, head).logits4(images) for head in HEADS}
            return logits | {"upernet auxiliary": self.upernet.training_logits(images).auxiliary}

    def training_logits(self, images: jax.Array, *, rngs: nnx.Rngs | None) -> dict[str, TrainingLogits]:
        with self.computed_once(images, rngs=rngs):
            return {head: getattr(self, head).training_logits(images, rngs=rngs) for head in HEADS}

    def computed_once(self, images: jax.Array, rngs: nnx.Rngs | None = None) -> Any:
        """A context in which the backbone gives the maps of these images."""
        maps = self.upernet.backbone(images, rngs=rngs)
        return mock.patch.object(twins_jax.TwinsBackbone, "__call__", return_value=maps)


def compare_segmenters(name: str, height: int, width: int, channels: int | None = None) -> Comparison:
    """Prepares a comparison of both heads' logits, at stride 4 and of the images' size; `channels` are the heads'."""
    weights = random_weights(name, channels)

    def theirs(images: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = {}
        for head in HEADS:
            logits = torch_segmentation.forward(weights.of(head, images.dtype), images, name, head)
            image_sized = torch_segmentation.resized(logits.decode, images.shape[1:3])
            named = logits._asdict() | {"logits": image_sized}
            outputs |= {f"{head} {key}": x.permute(0, 2, 3, 1) for key, x in named.items() if x is not None}
        return outputs

    return compare(
        theirs,
        ours=lambda dtype: Both(name, channels, dtype),
        run_ours=lambda both, images: both(images),
        params=weights.ported(),
        x=random_array(1, height, width, 3),
    )


def test_equals_pytorch_in_float64() -> None:
    # Maps of 52x57, 26x28, 13x14 and 6x7: windows of 7 tile no side of the first, whose padding is masked, and one side
    # of the others, whose padding is not.
    compare_segmenters("twins_svt_tiny", 211, 230, NARROW).check_float64()


@pytest.mark.parametrize(
    ("name", "height", "width"), [("twins_svt_small", 67, 98), ("twins_pcpvt_small", 70, 45)], ids=str
)
def test_rounds_as_little_as_pytorch_in_float32(name: str, height: int, width: int) -> None:
    compare_segmenters(name, height, width).check_float32()


class Heads(nnx.Module):
    """Both decode heads of a segmenter."""

    def __init__(self, dims: Sequence[int], dtype: DTypeLike) -> None:
        dtypes = DTypes(dtype=dtype, param_dtype=dtype)
        for name, head in HEADS.items():
            setattr(self, name, head(dims, CLASSES, dtypes=dtypes, rngs=nnx.Rngs(0)))

    def __call__(self, maps: Sequence[jax.Array]) -> dict[str, jax.Array]:
        return {name: getattr(self, name)(maps) for name in HEADS}


SIZES = ((19, 26), (9, 13), (4, 6), (2, 3))


def maps_of(x: Any, dims: Sequence[int]) -> list[Any]:
    """The maps of four stages out of one array, [B, H, W, sum of dims], of JAX or PyTorch."""
    ends = np.cumsum(dims).tolist()
    return [x[:, :h, :w, end - dim : end] for (h, w), dim, end in zip(SIZES, dims, ends, strict=True)]


def test_heads_of_another_variant_round_as_little_as_pytorch_in_float32() -> None:
    """Those of Twins-SVT-B. Heads depend on a backbone's channels alone: PCPVT-B and -L have PCPVT-S's."""
    dims = (96, 192, 384, 768)
    weights = {head: torch_segmentation.random_weights(head, dims, CLASSES, seed=1) for head in HEADS}

    def theirs(x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = [part.permute(0, 3, 1, 2) for part in maps_of(x, dims)]
        found = {head: torch_segmentation.heads(cast(weights[head], x.dtype), maps, head) for head in HEADS}
        return {head: logits.decode.permute(0, 2, 3, 1) for head, logits in found.items()}

    comparison = compare(
        theirs,
        ours=lambda dtype: Heads(dims, dtype),
        run_ours=lambda heads, x: heads(maps_of(x, dims)),
        params={head: ported(weights[head])["decode_head"] for head in HEADS},
        x=random_array(1, *SIZES[0], sum(dims)),
    )
    comparison.check_float32()


def test_training_equals_autograd() -> None:
    """Gradients of every parameter by both losses, and the running statistics after the step."""
    name = "twins_svt_tiny"
    weights = Weights(*(cast(part, torch.float64) for part in random_weights(name, NARROW)))
    images = random_array(3, 67, 98, 3).astype(np.float64)
    labels = np.random.default_rng(1).integers(0, CLASSES, (3, 67, 98))
    labels[:, 40:, :50] = 255

    with precision(np.float64):
        before = leaves(weights.ported())
        model = nnx.eval_shape(lambda: Both(name, NARROW, np.float64))
        apply, params, stats = twins_jax.split_model(model, Both.training_logits)
        params, stats = (with_values(tree, before) for tree in (params, stats))

        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits, updated = apply(params, stats, images, jax.random.key(0))
            upernet, semantic_fpn = logits["upernet"], logits["semantic_fpn"]
            total = cross_entropy(upernet.decode, labels) + 0.4 * cross_entropy(upernet.auxiliary, labels)
            return total + cross_entropy(semantic_fpn.decode, labels), updated

        gradients, updated = (leaves(tree) for tree in jax.jit(jax.grad(loss, has_aux=True))(params))

        parameters = Weights(*({key: w for key, w in part.items() if "running" not in key} for part in weights))
        for parameter in (w for part in parameters for w in part.values()):
            parameter.requires_grad_()
        for head in HEADS:
            logits = torch_segmentation.forward(
                weights.of(head, torch.float64), torch.from_numpy(images), name, head, training=True
            )
            torch_segmentation.loss(logits, torch.from_numpy(labels)).backward()
        # The gradients take the way of the weights, into our names and axes.
        expected = leaves(Weights(*({key: w.grad for key, w in part.items()} for part in parameters)).ported())
        after = leaves(weights.ported())

    assert gradients.keys() == expected.keys()
    for path, gradient in gradients.items():
        assert np.abs(expected[path]).max() > 0, path
        assert relative_error(gradient, expected[path]) < 1e-12, path
    assert updated.keys() == after.keys() - expected.keys()
    for path, statistic in updated.items():
        assert relative_error(before[path], after[path]) > 1e-2, path
        assert relative_error(statistic, after[path]) < 1e-13, path


def with_values(tree: Any, values: Mapping[str, np.ndarray]) -> Any:
    """The tree with the values of its paths."""
    paths = traverse_util.flatten_dict(tree, sep="/")
    return traverse_util.unflatten_dict({path: jnp.asarray(values[path]) for path in paths}, sep="/")


def cross_entropy(logits: jax.Array, labels: np.ndarray) -> jax.Array:
    """As `torch_segmentation.loss` has it."""
    scores = jax.nn.log_softmax(ops.resize_bilinear(logits, labels.shape[1:]))
    valid = labels != 255
    picked = jnp.take_along_axis(scores, np.where(valid, labels, 0)[..., None], axis=-1)[..., 0]
    return -jnp.where(valid, picked, 0).mean()


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_the_truth_equals_transformers(upernet: ModuleType, training: bool) -> None:
    """transformers' UPerNet, which was ported from mmsegmentation, with the same operations in the same order."""
    dims = (8, 16, 24, 32)
    weights = torch_segmentation.random_weights("upernet", dims, CLASSES, channels=16)
    config = SimpleNamespace(
        pool_scales=(1, 2, 3, 6),
        hidden_size=16,
        num_labels=CLASSES,
        auxiliary_in_channels=None,
        auxiliary_channels=256,
        auxiliary_num_convs=1,
        auxiliary_concat_input=False,
    )
    theirs = {
        "decode_head": upernet.UperNetHead(config, dims),
        "auxiliary_head": upernet.UperNetFCNHead(config, dims),
    }
    maps = [torch.from_numpy(random_array(2, dim, *size)) for dim, size in zip(dims, SIZES, strict=True)]
    expected = []
    for name, module in theirs.items():
        own = {key.removeprefix(f"{name}."): w.clone() for key, w in weights.items() if key.startswith(name)}
        renamed = {key.replace("bn", "batch_norm").replace("conv_seg", "classifier"): w for key, w in own.items()}
        missing, unexpected = module.load_state_dict(renamed, strict=False)
        assert not unexpected
        assert all(key.endswith("num_batches_tracked") for key in missing)
        with torch.no_grad():
            expected.append(module.train(training)(maps))

    found = torch_segmentation.heads(weights, maps, "upernet", training=training)
    for logits, truth in zip(found, expected, strict=True):
        assert torch.equal(logits, truth)
    for name, module in theirs.items():
        for key, tensor in module.state_dict().items():
            own_key = f"{name}.{key.replace('batch_norm', 'bn').replace('classifier', 'conv_seg')}"
            assert key.endswith("num_batches_tracked") or torch.equal(weights[own_key], tensor), key


@pytest.fixture(scope="module")
def upernet(torchvision: ModuleType) -> ModuleType:  # noqa: ARG001 - transformers imports torchvision
    return pytest.importorskip("transformers.models.upernet.modeling_upernet")
