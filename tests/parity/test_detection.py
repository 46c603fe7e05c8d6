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
from tests.parity.reference import Comparison, compare, load_backbone
from tests.parity.torch_twins import ARCHITECTURES, State
from twins_jax.config import DTypes
from twins_jax.detection.build import DETECTORS, make_detector
from twins_jax.detection.detector import detector_config
from twins_jax.detection.retinanet import RetinaHead
from twins_jax.detection.roi_heads import BoxHead, MaskHead
from twins_jax.detection.rpn import RegionProposalNetwork
from twins_jax.fpn import FeaturePyramid

CLASSES = 7
REGIONS = 6

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


def our_outputs(
    pyramids: dict[str, Sequence[jax.Array]],
    heads: RetinaHead,
    rpn: RegionProposalNetwork,
    box_head: BoxHead,
    mask_head: MaskHead,
) -> dict[str, jax.Array]:
    """Ours of the same names."""
    outputs = {}
    for head, dense in (("retinanet", heads(pyramids["retinanet"])), ("mask_rcnn", rpn(pyramids["mask_rcnn"]))):
        for i, (level, (logits, deltas)) in enumerate(zip(pyramids[head], dense, strict=True)):
            named = {"features": level, "logits": logits, "deltas": deltas}
            outputs |= {f"{head} {key} {i}": x for key, x in named.items()}
    dtype = outputs["retinanet features 0"].dtype
    logits, deltas = box_head.on_regions(jnp.asarray(BOX_REGIONS, dtype))
    masks = mask_head.on_regions(jnp.asarray(MASK_REGIONS, dtype))
    return outputs | {"box logits": logits, "box deltas": deltas, "masks": masks}


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
        heads = (self.retinanet.heads, self.mask_rcnn.rpn, self.mask_rcnn.box_head, self.mask_rcnn.mask_head)
        return our_outputs(pyramids, *heads)


def compare_detectors(name: str, height: int, width: int) -> Comparison:
    """Prepares a comparison of all that both detectors compute between images and boxes."""
    weights = {head: torch_detection.random_weights(head, ARCHITECTURES[name].dims, CLASSES) for head in DETECTORS}
    dense = torch_twins.random_weights(name, stage_norms=ARCHITECTURES[name].window is not None)

    def theirs(images: torch.Tensor) -> dict[str, torch.Tensor]:
        backbone = {f"backbone.{key}": tensor.to(images.dtype) for key, tensor in dense.items()}
        return torch_outputs(weights, torch_detection.maps(backbone, images, name))

    params = {head: ported(weights[head]) for head in DETECTORS}
    # NNX gives the shared backbone the first of its paths, by the alphabet.
    params["mask_rcnn"]["backbone"] = twins_jax.get_params(load_backbone(dense))
    return compare(
        theirs,
        ours=lambda dtype: Both(name, dtype),
        run_ours=lambda both, images: both(images),
        params=params,
        x=random_array(1, height, width, 3),
    )


def test_equals_pytorch_in_float64() -> None:
    # Maps of 40x56, 20x28, 10x14 and 5x7: windows of 7 tile one of the last ones only, and P6 has odd sides.
    compare_detectors("twins_svt_tiny", 160, 224).check_float64()


@pytest.mark.parametrize(("name", "height", "width"), [("twins_svt_small", 96, 64), ("twins_pcpvt_small", 64, 96)])
def test_rounds_as_little_as_pytorch_in_float32(name: str, height: int, width: int) -> None:
    compare_detectors(name, height, width).check_float32()


class Heads(nnx.Module):
    """Both detectors without their backbone."""

    def __init__(self, dims: Sequence[int], dtype: DTypeLike) -> None:
        common: dict[str, Any] = {"dtypes": DTypes(dtype=dtype, param_dtype=dtype), "rngs": nnx.Rngs(0)}
        init = nnx.initializers.zeros
        necks = {
            "retinanet": FeaturePyramid(dims[1:], extra_levels=2, kernel_init=init, **common),
            "mask_rcnn": FeaturePyramid(dims, kernel_init=init, **common),
        }
        self.retinanet = nnx.Dict(neck=necks["retinanet"], heads=RetinaHead(CLASSES, **common))
        self.mask_rcnn = nnx.Dict(
            neck=necks["mask_rcnn"],
            rpn=RegionProposalNetwork(**common),
            box_head=BoxHead(CLASSES, **common),
            mask_head=MaskHead(CLASSES, **common),
        )

    def __call__(self, maps: Sequence[jax.Array]) -> dict[str, jax.Array]:
        retinanet, mask_rcnn = self.retinanet, self.mask_rcnn
        levels = mask_rcnn["neck"](maps)
        pyramids = {"retinanet": retinanet["neck"](maps[1:]), "mask_rcnn": (*levels, levels[-1][:, ::2, ::2])}
        heads = (retinanet["heads"], mask_rcnn["rpn"], mask_rcnn["box_head"], mask_rcnn["mask_head"])
        return our_outputs(pyramids, *heads)


SIZES = ((24, 40), (12, 20), (6, 10), (3, 5))


def maps_of(x: Any, dims: Sequence[int]) -> list[Any]:
    """The maps of four stages out of one array, [B, H, W, sum of dims], of JAX or PyTorch."""
    ends = np.cumsum(dims).tolist()
    return [x[:, :h, :w, end - dim : end] for (h, w), dim, end in zip(SIZES, dims, ends, strict=True)]


@pytest.mark.parametrize("dims", [(96, 192, 384, 768)], ids=["twins_svt_base"])
def test_heads_of_other_variants_round_as_little_as_pytorch_in_float32(dims: tuple[int, ...]) -> None:
    """Heads depend on a backbone's channels alone: PCPVT-B and -L have PCPVT-S's."""
    weights = {head: torch_detection.random_weights(head, dims, CLASSES, seed=1) for head in DETECTORS}
    comparison = compare(
        lambda x: torch_outputs(weights, [part.permute(0, 3, 1, 2) for part in maps_of(x, dims)]),
        ours=lambda dtype: Heads(dims, dtype),
        run_ours=lambda heads, x: heads(maps_of(x, dims)),
        params={head: ported(weights[head]) for head in DETECTORS},
        x=random_array(1, *SIZES[0], sum(dims)),
    )
    comparison.check_float32()
