"""cuDNN's fused attention."""

import math

import jax


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """`twins_jax.attention.attend` without a bias, by cuDNN, whose scores stay on the chip.

    Args:
        query: [..., Q, heads, d], bfloat16 or float16.
        key: [..., K, heads, d].
        value: [..., K, heads, d].

    Returns:
        [..., Q, heads, d] in the dtype of `value`.

    Raises:
        RuntimeError: there is no cuDNN, or it does not support the GPU.
    """
    batch = math.prod(query.shape[:-3])
    arguments = (x.reshape(batch, *x.shape[-3:]) for x in (query, key, value))
    return jax.nn.dot_product_attention(*arguments, implementation="cudnn").reshape(query.shape)
