"""cuDNN's fused attention."""

import math

import jax


def softmax_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """`attention.softmax_attention` without a bias, by cuDNN, which keeps the scores on the chip.

    Args:
        query: [..., Q, heads, d], bfloat16 or float16.
        key: [..., K, heads, d].
        value: [..., K, heads, d].

    Returns:
        [..., Q, heads, d] in the dtype of `value`.

    Raises:
        RuntimeError: cuDNN is not installed, or does not support the GPU.
    """
    batch = math.prod(query.shape[:-3])
    arguments = (x.reshape(batch, *x.shape[-3:]) for x in (query, key, value))
    return jax.nn.dot_product_attention(*arguments, implementation="cudnn").reshape(query.shape)
