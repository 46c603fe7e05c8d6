"""Imports timm and builds its models: the independent implementation that ours is compared with."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from twins_jax.config import WindowPadding, variant_config
from twins_jax.errors import InputError, one_line
from twins_jax.port import torch_detectors, torch_heads
from twins_jax.port.convert import Weights
from twins_jax.port.infer import Inferred
from twins_jax.port.torch_io import to_torch

HEADS = torch_heads.HEADS | torch_detectors.HEADS
"""The necks and heads of dense tasks, by name: functions of a state dict and four maps [B, C, H, W]."""

_kept_alive: list[Any] = []


def define_torchvision_operators() -> None:
    """Defines the two operator schemas that importing torchvision needs and may lack.

    The compiled operators of the torchvision from PyPI do not load beside a torch without CUDA. No operator is called.

    Raises:
        ImportError: torch is not installed.
    """
    import torch

    if hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept_alive.append(library)  # its definitions go when it goes


def import_timm() -> Any:
    """Returns the module timm, with its Twins models and its data pipeline.

    Raises:
        InputError: it, or torch, cannot be imported.
    """
    try:
        define_torchvision_operators()
        import timm.data
        import timm.models.twins
    except Exception as error:  # an unfit torchvision makes timm's import fail with RuntimeError
        raise InputError(f"timm cannot be imported: {one_line(error)}") from error
    return timm


def torch_model(
    weights: Weights, model: Inferred, window_padding: WindowPadding
) -> Callable[[np.ndarray, Any], list[np.ndarray]]:
    """Builds timm's model with weights that are loaded by their own names.

    timm has neither stage norms nor "mask" padding. Its layers are put together with the norms in the main path, and
    its LSA gives way to `_masked_lsa`, both as upstream's `segmentation/gvt.py` has them.

    Args:
        weights: of a PyTorch layout.
        model: the model that they belong to.
        window_padding: the treatment of maps that LSA's windows do not tile.

    Returns:
        A function of images [B, H, W, in_channels] and a dtype, float32 or float64, that gives in that dtype the four
        maps [B, H, W, C], and then a classifier's logits or features, or the outputs of `HEADS`, channels last.

    Raises:
        InputError: timm cannot be imported, or lacks the model.
    """
    timm = import_timm()
    import torch

    state = {name.removeprefix(weights.layout.prefix): to_torch(np.array(t)) for name, t in weights.tensors.items()}
    network = _create(timm, model)
    if model.stage_norms:
        dims = variant_config(model.name).embed_dims
        network.norm_list = torch.nn.ModuleList(torch.nn.LayerNorm(dim, eps=1e-6) for dim in dims)
    own = state
    if model.kind_name != "classifier":  # timm's backbones end with a norm, which no comparison reads
        network.norm = torch.nn.Identity()
        own = {name: state[name] for name in network.state_dict()}
    network.load_state_dict(own)
    network.float().eval()
    if window_padding == "mask":
        for module in network.modules():
            if isinstance(module, timm.models.twins.LocallyGroupedAttn):
                module.register_forward_hook(_masked_lsa)  # what a hook returns takes the place of the output
    networks: dict[Any, Any] = {np.float32: network, np.float64: copy.deepcopy(network).double()}

    def run(images: np.ndarray, dtype: Any) -> list[np.ndarray]:
        with torch.no_grad():
            x = torch.from_numpy(images.astype(dtype)).permute(0, 3, 1, 2)
            if model.stage_norms:
                maps = _normed_maps(networks[dtype], x)
            else:
                final, maps = networks[dtype].forward_intermediates(x)
            if model.head is not None:
                tensors = {name: tensor.to(x.dtype) for name, tensor in state.items() if name not in own}
                maps = [*maps, *HEADS[model.head](tensors, maps)]
            outputs = [(x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy() for x in maps]
            if model.kind_name == "classifier":
                outputs.append(networks[dtype].forward_head(final).numpy())
            return outputs

    return run


def _create(timm: Any, model: Inferred) -> Any:
    num_classes = 0 if model.head else model.num_classes or 0
    if timm.is_model(model.name):
        return timm.create_model(model.name, num_classes=num_classes, in_chans=model.in_channels)
    config = variant_config(model.name)
    if config.window_size is None:
        raise InputError(f"{model.name}: timm lacks this model")
    return timm.models.twins.Twins(
        num_classes=num_classes,
        in_chans=model.in_channels,
        embed_dims=config.embed_dims,
        num_heads=config.num_heads,
        mlp_ratios=config.mlp_ratios,
        depths=config.depths,
        sr_ratios=config.sub_sampling_ratios,
        wss=(config.window_size,) * 4,
    )


def _normed_maps(network: Any, x: Any) -> list[Any]:
    """The maps [B, C, H, W] of a timm model that has `norm_list`, too: upstream's `forward_features`."""
    maps = []
    for embed, blocks, peg, norm in zip(
        network.patch_embeds, network.blocks, network.pos_block, network.norm_list, strict=True
    ):
        x, size = embed(x)
        for i, block in enumerate(blocks):
            x = block(x, size)
            if i == 0:
                x = peg(x, size)
        x = norm(x).mT.unflatten(2, size).contiguous()
        maps.append(x)
    return maps


def _masked_lsa(attention: Any, inputs: tuple[Any, tuple[int, int]], _output: Any) -> Any:
    """Upstream's `GroupAttention.forward_mask` on the parameters of timm's LSA, whose output it replaces.

    Args:
        attention: timm's module.
        inputs: tokens [B, H * W, C], and H and W.

    Returns:
        Tokens [B, H * W, C].
    """
    import torch

    tokens, (height, width) = inputs
    batch, count, dim = tokens.shape
    size, heads = attention.ws, attention.num_heads
    bottom, right = -height % size, -width % size
    padded = torch.nn.functional.pad(tokens.unflatten(1, (height, width)), (0, 0, 0, right, 0, bottom))
    is_padding = padded.new_zeros(1, *padded.shape[1:3], 1)
    is_padding[:, -bottom:] = 1  # of nothing to pad, these slices mark everything, and then nothing is masked
    is_padding[:, :, -right:] = 1

    def windows(x: Any) -> Any:  # [B, H, W, C] -> [B, windows, size * size, C]
        x = x.unflatten(2, (-1, size)).unflatten(1, (-1, size))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    marks = windows(is_padding)
    bias = -1000.0 * (marks != marks.mT).to(tokens.dtype)
    query, key, value = attention.qkv(windows(padded)).unflatten(-1, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5)
    attended = ((query * attention.scale) @ key.mT + bias[:, :, None]).softmax(-1) @ value
    attended = attended.transpose(2, 3).reshape(batch, -1, padded.shape[2] // size, size, size, dim)
    attended = attended.transpose(2, 3).reshape(padded.shape)[:, :height, :width]
    return attention.proj(attended.reshape(batch, count, dim))
