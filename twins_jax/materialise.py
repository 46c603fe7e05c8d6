"""A boundary for XLA's fusions in the backward pass."""

import jax
from jax import lax
from jax.custom_derivatives import linear_call


def materialise_gradient(x: jax.Array) -> jax.Array:
    """The identity, whose cotangent XLA's CPU backend must write to memory once.

    The cotangent of a residual stream is a sum over all later blocks. That backend fuses the sum into each of its
    consumers, and so computes it anew for each, from the last block on: a training step of twins_svt_small took 1.6
    times as long. It drops `lax.optimization_barrier` before it fuses, but takes a conditional's operand as it is.
    Other backends see the identity.
    """
    return linear_call(lambda _, x: x, lambda _, cotangent: _materialised(cotangent), (), x)


def _materialised(x: jax.Array) -> jax.Array:
    def on_cpu(x: jax.Array) -> jax.Array:
        # Either branch is the identity, which XLA cannot know: it compares computations, and these differ.
        return lax.cond(x.ravel()[0] < 0, lambda x: x, lambda x: x + 0.0, x)

    return lax.platform_dependent(x, cpu=on_cpu, default=lambda x: x)
