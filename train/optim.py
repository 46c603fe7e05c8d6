"""The optimizer of the reference recipe (upstream trains with timm's AdamW and cosine schedule)."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr, tree_map_with_path

from twins_jax import Params
from twins_jax.config import variant_config

from .config import RunConfig


def make_schedule(config: RunConfig, train_examples: int) -> optax.Schedule:
    """Makes the learning rate by step: linear from the warm-up's to the peak, then a cosine to the smallest."""
    return optax.warmup_cosine_decay_schedule(
        init_value=config.optim.warmup_learning_rate,
        peak_value=config.optim.learning_rate * config.batch_size / 512,
        warmup_steps=config.warmup_steps(train_examples),
        decay_steps=config.total_steps(train_examples),
        end_value=config.optim.min_learning_rate,
    )


def decay_mask(params: Params) -> Any:
    """Marks the parameters that decay: all but biases, norms and other 1-d ones, and the PEG's kernels.

    Returns:
        A pytree of bool like `params`. Upstream exempts `pos_block.*` by `no_weight_decay`, timm's optimizer factory
        the 1-d parameters.
    """
    return tree_map_with_path(lambda path, leaf: leaf.ndim > 1 and not re.search(r"(^|/)peg/", _name(path)), params)


def layer_scales(params: Params, decay: float, depths: tuple[int, ...]) -> Any:
    """Computes the factor on each parameter's learning rate in layer-wise decay, for fine-tuning.

    Layers are, from the first: the first stage's patch embedding; each block, of which a stage's first one takes along
    the stage's PEG and, after the first stage, its patch embedding, and the last of all the final norm; and the head,
    whose factor is 1 (the numbers of timm's `group_matcher` of Twins).

    Args:
        params: of a `TwinsClassifier`.
        decay: the factor from each layer to the one before it.
        depths: blocks of each stage.

    Returns:
        A pytree of floats like `params`.
    """
    last = sum(depths) + 1

    def scale(path: tuple[Any, ...], leaf: jax.Array) -> float:  # noqa: ARG001 - the path decides
        match = re.match(r"backbone/stages/(\d)/(?:blocks/(\d+)/)?(patch_embed)?", _name(path))
        if not match:
            return decay if _name(path).startswith("norm/") else 1.0
        stage, block = int(match[1]), int(match[2] or 0)
        is_stem = stage == 0 and match[3]
        return decay ** (last - (0 if is_stem else 1 + sum(depths[:stage]) + block))

    return tree_map_with_path(scale, params)


def make_optimizer(config: RunConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Chains gradient clipping by global norm and AdamW (betas 0.9 and 0.999, epsilon 1e-8) with `decay_mask`."""
    transforms = [
        optax.clip_by_global_norm(config.optim.clip_norm),
        optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=config.optim.weight_decay, mask=decay_mask),
    ]
    if config.optim.layer_decay < 1:
        depths = variant_config(config.model["name"]).depths

        def scale_by_layer(updates: Params, params: Params) -> Params:
            return jax.tree.map(jnp.multiply, updates, layer_scales(params, config.optim.layer_decay, depths))

        transforms.append(optax.stateless(scale_by_layer))  # after AdamW: it scales the weight decay too
    return optax.chain(*transforms)


def _name(path: tuple[Any, ...]) -> str:
    return keystr(path, simple=True, separator="/")
