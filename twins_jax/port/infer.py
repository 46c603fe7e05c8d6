"""Reads variant, channels and classes off the names and shapes of a model's parameters."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from twins_jax.config import VARIANTS, variant_config
from twins_jax.errors import InputError

Shape = tuple[int, ...]


class Inferred(NamedTuple):
    """What a set of weights belongs to: arguments of `create_model`."""

    name: str
    in_channels: int
    num_classes: int


def infer(shapes: Mapping[str, Shape], label: str, name: str | None = None) -> Inferred:
    """Finds the model that parameters belong to.

    Only what tells variants apart is looked at (blocks and channels of each stage, and whether there is LSA), so that
    weights with a few tensors missing or misshapen are still recognised, and then compared name by name.

    Args:
        shapes: path -> shape of the parameters, in our names and layout.
        label: what the weights were read from, for the error.
        name: the variant, if it is known already.

    Raises:
        InputError: no variant has these stages; says what they look like and what the variants have.
    """
    if name is not None:
        variant_config(name)
    patch_kernel = shapes.get("backbone/stages/0/patch_embed/proj/kernel", ())
    head = shapes.get("head/bias") or shapes.get("head/kernel") or (0,)
    return Inferred(
        name=name or _infer_variant(shapes, label),
        in_channels=patch_kernel[2] if len(patch_kernel) == 4 else 3,
        num_classes=head[-1],
    )


def _infer_variant(shapes: Mapping[str, Shape], label: str) -> str:
    depths, dims = [], []
    for stage in range(4):
        blocks = [int(m[1]) for path in shapes if (m := re.match(rf"backbone/stages/{stage}/blocks/(\d+)/", path))]
        depths.append(max(blocks, default=-1) + 1)
        peg_bias = shapes.get(f"backbone/stages/{stage}/peg/bias")
        dims.append(peg_bias[0] if peg_bias else None)
    has_lsa = any("/attn/qkv/" in path for path in shapes)

    for name, config in VARIANTS.items():
        same_dims = all(dim in (None, expected) for dim, expected in zip(dims, config.embed_dims, strict=True))
        if same_dims and config.depths == tuple(depths) and has_lsa == (config.window_size is not None):
            return name
    known = "; ".join(f"{name}: {c.depths} and {c.embed_dims}" for name, c in VARIANTS.items())
    raise InputError(
        f"{label} holds no known Twins variant: it looks like depths {tuple(depths)} and channels {tuple(dims)} "
        f"{'with' if has_lsa else 'without'} LSA; known are {known}"
    )
