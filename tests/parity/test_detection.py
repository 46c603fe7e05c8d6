"""The pyramids and heads of RetinaNet and Mask R-CNN, on their backbones, against `torch_detection`."""

import re
from collections.abc import Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx, traverse_util
from jax.typing import DTypeLike

import twins_jax
from tests.parity import torch_detection, torch_twins
from tests.parity.reference import compare, load_backbone
from tests.parity.torch_twins import ARCHITECTURES, State
from twins_jax.config import VARIANTS, TwinsConfig
from twins_jax.detection import detector
from twins_jax.detection.build import DETECTORS, make_detector
from twins_jax.detection.detector import detector_config

CLASSES = 7
REGIONS = 4

RENAMES = (
    (r"^neck\.(\w+)\.(\d)\.conv", r"neck.\1.\2"),
    (r"^roi_head\.bbox_head\.(shared_fcs\.\d|fc_(cls|reg))", r"box_head.\1"),
    (r"^roi_head\.mask_head\.(conv_)?", "mask_head."),
    (r"^bbox_head\.(retina_)?", "heads."),
    (r"^rpn_head\.rpn_", "rpn."),
    (r"convs\.(\d)\.conv", r"convs.\1"),
    (r"fc_", ""),
    (r"weight", "kernel"),
)
"""From mmdet's names to ours, by rules that know nothing of `twins_jax.port`."""


def ported(weights: State) -> dict[str, Any]:
    """Parameters in our names and axes."""
    arrays = {}
    for name, tensor in weights.items():
        if name.endswith("upsample.weight"):  # [in, out, h, w]
            tensor = tensor.permute(0, 2, 3, 1)
        elif name.endswith("shared_fcs.0.weight"):  # the columns are [in, y, x]
            tensor = tensor.unflatten(1, (-1, 7, 7)).permute(2, 3, 1, 0).flatten(0, 2)
        elif tensor.ndim == 4:  # [out, in, h, w]
            tensor = tensor.permute(2, 3, 1, 0)
        elif tensor.ndim == 2:
            tensor = tensor.T
        for pattern, ours in RENAMES:
            name = re.sub(pattern, ours, name)
        arrays[name] = tensor.numpy().copy()
    tree: dict[str, Any] = traverse_util.unflatten_dict(arrays, sep=".")
    return tree


def random_array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


BOX_REGIONS = random_array(1, REGIONS, 7, 7, 256, seed=1)
MASK_REGIONS = random_array(1, REGIONS, 14, 14, 256, seed=2)


def torch_outputs(weights: dict[str, State], maps: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """PyTorch's outputs of both detectors on maps C2 to C5, and on the regions, channels last."""
    dtype = maps[0].dtype
    retinanet, mask_rcnn = (
        {name: tensor.to(dtype) for name, tensor in weights[head].items()} for head in ("retinanet", "mask_rcnn")
    )
    outputs = {}
    for head, pyramid, run in (
        ("retinanet", torch_detection.retinanet_pyramid(retinanet, maps), torch_detection.retina_head),
        ("mask_rcnn", torch_detection.mask_rcnn_pyramid(mask_rcnn, maps), torch_detection.rpn_head),
    ):
        dense = run(retinanet if head == "retinanet" else mask_rcnn, pyramid)
        for i, (level, (logits, deltas)) in enumerate(zip(pyramid, dense, strict=True)):
            named = {"features": level, "logits": logits, "deltas": deltas}
            outputs |= {f"{head} {key} {i}": x.permute(0, 2, 3, 1) for key, x in named.items()}
    box_regions, mask_regions = (
        torch.from_numpy(x[0]).to(dtype).permute(0, 3, 1, 2) for x in (BOX_REGIONS, MASK_REGIONS)
    )
    logits, deltas = torch_detection.box_head(mask_rcnn, box_regions)
    masks = torch_detection.mask_head(mask_rcnn, mask_regions).permute(0, 2, 3, 1)
    return outputs | {"box logits": logits[None], "box deltas": deltas[None], "masks": masks[None]}


class Both(nnx.Module):
    """The two detectors on one backbone, whose compilation takes the time."""

    def __init__(self, name: str, dtype: DTypeLike) -> None:
        config = detector_config(name, dtype=dtype, param_dtype=dtype)
        for head in DETECTORS:
            setattr(self, head, make_detector(config, head, CLASSES, rngs=nnx.Rngs(0)))
        self.retinanet.backbone = self.mask_rcnn.backbone

    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        maps = self.mask_rcnn.backbone(images)
        with mock.patch.object(twins_jax.TwinsBackbone, "__call__", return_value=maps):
            pyramids = {head: getattr(self, head).features(images) for head in DETECTORS}
        dense = {"retinanet": self.retinanet.heads, "mask_rcnn": self.mask_rcnn.rpn}
        outputs = {}
        for head, pyramid in pyramids.items():
            for i, (level, (logits, deltas)) in enumerate(zip(pyramid, dense[head](pyramid), strict=True)):
                named = {"features": level, "logits": logits, "deltas": deltas}
                outputs |= {f"{head} {key} {i}": x for key, x in named.items()}
        logits, deltas = self.mask_rcnn.box_head.on_regions(jnp.asarray(BOX_REGIONS, images.dtype))
        masks = self.mask_rcnn.mask_head.on_regions(jnp.asarray(MASK_REGIONS, images.dtype))
        return outputs | {"box logits": logits, "box deltas": deltas, "masks": masks}


def test_equals_pytorch_in_float64() -> None:
    """All that both detectors compute between images and boxes."""
    name = "twins_svt_tiny"
    weights = {head: torch_detection.random_weights(head, ARCHITECTURES[name].dims, CLASSES) for head in DETECTORS}
    dense = torch_twins.random_weights(name, stage_norms=True)

    def theirs(images: torch.Tensor) -> dict[str, torch.Tensor]:
        backbone = {f"backbone.{key}": tensor.to(images.dtype) for key, tensor in dense.items()}
        return torch_outputs(weights, torch_detection.maps(backbone, images, name))

    params = {head: ported(weights[head]) for head in DETECTORS}
    # NNX gives the shared backbone the first of its paths, by the alphabet.
    params["mask_rcnn"]["backbone"] = twins_jax.get_params(load_backbone(dense))
    # Maps of 24x40, 12x20, 6x10 and 3x5: windows of 7 tile no side, and strides of 2 meet odd ones.
    comparison = compare(
        theirs,
        ours=lambda dtype: Both(name, dtype),
        run_ours=lambda both, images: both(images),
        params=params,
        x=random_array(1, 96, 160, 3),
    )
    comparison.check_float64()


SIZES = ((16, 24), (8, 12), (4, 6), (2, 3))


def maps_of(x: Any, dims: Sequence[int]) -> list[Any]:
    """The maps of four stages out of one array, [B, H, W, sum of dims], of JAX or PyTorch."""
    ends = np.cumsum(dims).tolist()
    return [x[:, :h, :w, end - dim : end] for (h, w), dim, end in zip(SIZES, dims, ends, strict=True)]


class Maps(nnx.Module):
    """Gives the maps that its input holds, in the place of a backbone."""

    def __init__(self, config: TwinsConfig, **_: Any) -> None:
        self.dims = config.embed_dims

    def __call__(self, x: jax.Array, **_: Any) -> list[jax.Array]:
        return maps_of(x, self.dims)


@pytest.mark.parametrize("name", ["twins_pcpvt_small", "twins_svt_base"])
def test_rounds_as_little_as_pytorch_in_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the backbone's maps on: heads depend on their channels alone, and PCPVT-B and -L have PCPVT-S's."""
    monkeypatch.setattr(detector, "TwinsBackbone", Maps)
    dims = VARIANTS[name].embed_dims
    weights = {head: torch_detection.random_weights(head, dims, CLASSES, seed=1) for head in DETECTORS}
    comparison = compare(
        lambda x: torch_outputs(weights, [part.permute(0, 3, 1, 2) for part in maps_of(x, dims)]),
        ours=lambda dtype: Both(name, dtype),
        run_ours=lambda both, x: both(x),
        params={head: ported(weights[head]) for head in DETECTORS},
        x=random_array(1, *SIZES[0], sum(dims)),
    )
    comparison.check_float32()
