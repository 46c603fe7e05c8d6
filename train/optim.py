"""The optimizer of all tasks: AdamW, with the schedule and the weight decay that a task's `OptimConfig` decides."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jax.tree_util import keystr, tree_map_with_path

from twins_jax import Params

from .config import OptimConfig, RunConfig


def make_schedule(config: RunConfig, train_examples: int) -> optax.Schedule:
    """Makes the learning rate of a run by step."""
    return config.optim.make_schedule(
        batch_size=config.batch_size,
        total_steps=config.total_steps(train_examples),
        train_examples=train_examples,
    )


def decay_mask(config: OptimConfig, params: Params) -> Any:
    """Marks the parameters that decay; returns a pytree of bool like `params`."""
    return tree_map_with_path(lambda path, leaf: config.decays(_name(path), leaf), params)


def make_optimizer(config: RunConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Chains gradient clipping by global norm, AdamW (betas 0.9 and 0.999, epsilon 1e-8) and the task's factors."""
    optim = config.optim
    transforms = [
        optax.clip_by_global_norm(optim.clip_norm),
        optax.adamw(
            schedule,
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=optim.weight_decay,
            mask=lambda params: decay_mask(optim, params),
        ),
    ]
    if scale := optim.update_scales(config.model["name"]):
        transforms.append(_scale_updates(scale))  # after AdamW: it scales the weight decay too
    return optax.chain(*transforms)


def _scale_updates(scale: Callable[[str], float]) -> optax.GradientTransformation:
    def update(updates: Params, params: Params) -> Params:
        del params
        return tree_map_with_path(lambda path, leaf: jnp.multiply(leaf, scale(_name(path))), updates)

    return optax.stateless(update)


def _name(path: tuple[Any, ...]) -> str:
    return keystr(path, simple=True, separator="/")
