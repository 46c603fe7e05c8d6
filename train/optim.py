"""The optimizer of the reference recipe (upstream trains with timm's AdamW and cosine schedule)."""

import re
from typing import Any

import jax
import optax

from train.config import TrainConfig
from twins_jax import Params


def make_schedule(config: TrainConfig, train_examples: int) -> optax.Schedule:
    """The learning rate by step: linear from the warm-up's to the peak, then a cosine to the smallest."""
    return optax.warmup_cosine_decay_schedule(
        init_value=config.optim.warmup_learning_rate,
        peak_value=config.optim.learning_rate * config.batch_size / 512,
        warmup_steps=config.warmup_steps(train_examples),
        decay_steps=config.total_steps(train_examples),
        end_value=config.optim.min_learning_rate,
    )


def decay_mask(params: Params) -> Any:
    """Which parameters are decayed: all but biases, norms and other 1-d ones, and the PEG's kernels.

    Returns:
        A pytree of bool like `params`. Upstream exempts `pos_block.*` by `no_weight_decay`, timm's optimizer factory
        the 1-d parameters.
    """

    def is_decayed(path: tuple[Any, ...], leaf: jax.Array) -> bool:
        return leaf.ndim > 1 and not re.search(r"(^|/)peg/", jax.tree_util.keystr(path, simple=True, separator="/"))

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def make_optimizer(config: TrainConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Gradient clipping by global norm, then AdamW (betas 0.9 and 0.999, epsilon 1e-8) with `decay_mask`."""
    return optax.chain(
        optax.clip_by_global_norm(config.optim.clip_norm),
        optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=config.optim.weight_decay, mask=decay_mask),
    )
