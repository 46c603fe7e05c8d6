"""The arithmetic of the layers, as functions named by what they compute.

Models call these and hold the parameters. This package alone chooses the order of operations and the code for each
kind of hardware: `numerics` holds the rules for dtypes, `dispatch` chooses between implementations of attention,
`cudnn` and `pallas` are two of them, and `xla_cpu` and `xla_tpu` hold what exists for one of XLA's backends each.
"""

from twins_jax.ops.attention import attention, attention_weights
from twins_jax.ops.convolution import conv, depthwise_conv, patch_conv
from twins_jax.ops.dispatch import PLATFORMS, PORTABLE
from twins_jax.ops.numerics import at_least_float32, gelu, layer_norm, linear, per_channel, residual_add
from twins_jax.ops.resize import adaptive_average_pool, bilinear_neighbors, resize_bilinear, resize_nearest
from twins_jax.ops.resized_conv import resized_conv
from twins_jax.ops.window_attention import window_attention, window_attention_weights
from twins_jax.ops.xla_cpu import by_image

__all__ = [
    "PLATFORMS",
    "PORTABLE",
    "adaptive_average_pool",
    "at_least_float32",
    "attention",
    "attention_weights",
    "bilinear_neighbors",
    "by_image",
    "conv",
    "depthwise_conv",
    "gelu",
    "layer_norm",
    "linear",
    "patch_conv",
    "per_channel",
    "residual_add",
    "resize_bilinear",
    "resize_nearest",
    "resized_conv",
    "window_attention",
    "window_attention_weights",
]
