"""The layers that Twins shares with other vision models, and the reference's initializers.

Each takes `dtype`, of the computation, and `param_dtype`, of the parameters.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from twins_jax import ops
from twins_jax.errors import require
from twins_jax.fit import declare

LINEAR_INIT = nnx.initializers.normal(0.02)
"""The reference calls `trunc_normal_(std=0.02)`, which cuts at the absolute values -2 and 2, 100 standard deviations
out: a plain normal distribution (upstream `gvt.py`, `_init_weights`)."""


def conv_init(fan_out: int) -> nnx.Initializer:
    """Normal of variance 2 / fan_out, fan_out = kernel area * output channels / groups (upstream `gvt.py`)."""
    return nnx.initializers.normal((2.0 / fan_out) ** 0.5)


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis: [..., C] -> [..., C]. See `ops.layer_norm` for its arithmetic."""

    def __init__(
        self, dim: int, *, epsilon: float, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike = jnp.float32
    ) -> None:
        self.scale = declare(nnx.Param, jnp.ones((dim,), param_dtype))
        self.bias = declare(nnx.Param, jnp.zeros((dim,), param_dtype))
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        return ops.layer_norm(x, self.scale[...], self.bias[...], epsilon=self.epsilon, dtype=self.dtype)


class BatchNorm(nnx.Module):
    """BatchNorm as PyTorch's: [..., C] -> [..., C], normalized over all axes but the last.

    In training x is normalized by the mean and the biased variance of the batch, and each running statistic becomes
    `momentum` * running + (1 - `momentum`) * batch. The running variance takes the unbiased variance, n / (n - 1) times
    the biased one, as in PyTorch; PyTorch's momentum of 0.1 is 0.9 here. Statistics are float32 at least.

    Under `jit` a batch that is laid out over several devices is one logical array: n counts the positions on all of
    them, and the statistics are those of all devices (PyTorch's SyncBatchNorm).
    """

    def __init__(
        self,
        dim: int,
        *,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
    ) -> None:
        self.scale = declare(nnx.Param, jnp.ones((dim,), param_dtype))
        self.bias = declare(nnx.Param, jnp.zeros((dim,), param_dtype))
        self.mean = declare(nnx.BatchStat, jnp.zeros((dim,), ops.at_least_float32(param_dtype)))
        self.var = declare(nnx.BatchStat, jnp.ones((dim,), ops.at_least_float32(param_dtype)))
        self.epsilon = epsilon
        self.momentum = momentum
        self.dtype = dtype

    def __call__(self, x: jax.Array, *, training: bool) -> jax.Array:
        """Normalizes x.

        Args:
            x: [..., C].
            training: use the statistics of x and update the running ones; otherwise use the running ones.

        Returns:
            [..., C] in `dtype`.

        Raises:
            InputError: x has one position only, in training; its variance is not known.
        """
        wide = ops.at_least_float32(self.dtype)
        x = x.astype(wide)
        if training:
            axes, count = tuple(range(x.ndim - 1)), math.prod(x.shape[:-1])
            require("x.shape", x.shape, count > 1, "of more than one position in training")
            mean = x.mean(axis=axes)
            var = jnp.square(x - ops.per_channel(mean, x)).mean(axis=axes)
            for running, new in ((self.mean, mean), (self.var, var * (count / (count - 1)))):
                new = lax.stop_gradient(new).astype(running.dtype)
                running[...] = self.momentum * running[...] + (1 - self.momentum) * new
        else:
            mean, var = self.mean[...].astype(wide), self.var[...].astype(wide)
        normal = (x - ops.per_channel(mean, x)) * ops.per_channel(lax.rsqrt(var + self.epsilon), x)
        scale, bias = (ops.per_channel(param[...].astype(wide), x) for param in (self.scale, self.bias))
        return (normal * scale + bias).astype(self.dtype)


class Linear(nnx.Module):
    """A linear layer with bias: [..., in] -> [..., out]. The initializer is the backbone's unless one is given."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel_init: nnx.Initializer = LINEAR_INIT,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.kernel = declare(nnx.Param, kernel_init(rngs.params(), (in_features, out_features), param_dtype))
        self.bias = declare(nnx.Param, jnp.zeros((out_features,), param_dtype))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        return ops.linear(x, self.kernel[...], self.bias[...], dtype=self.dtype)


def check_rngs(rngs: nnx.Rngs, stream: str) -> None:
    """Raises InputError unless `rngs` are streams of random numbers with the one named.

    A Dropout takes a bare key as well, and all of a model's would draw the same from it.
    """
    has_stream = isinstance(rngs, nnx.Rngs) and (stream in rngs or "default" in rngs)
    require("rngs", rngs, has_stream, f"nnx.Rngs with the stream {stream!r}, such as nnx.Rngs({stream}=0), or of a key")


def drop(dropout: nnx.Dropout, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
    """Returns `dropout` of x if `rngs` are given to draw from, and x itself otherwise.

    The randomness comes with the call to keep all but parameters out of a model's state: a Dropout that owns its
    `rngs` stores two more leaves, even at rate 0.
    """
    return x if rngs is None else dropout(x, deterministic=False, rngs=rngs)


def drop_path(rate: float) -> nnx.Dropout:
    """Stochastic depth: drops the whole residual branch of a sample, for x of shape [B, H, W, C]."""
    return nnx.Dropout(rate, broadcast_dims=(1, 2, 3))


class Conv(nnx.Module):
    """A zero-padded convolution of odd size: [B, H, W, in] -> [B, ceil(H / stride), ceil(W / stride), out].

    Parameters: kernel [size, size, in, out], and bias [out] unless it is left out. `kernel_init` has to be named: heads
    of different tasks start from different distributions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        kernel_init: nnx.Initializer,
        use_bias: bool = True,
        stride: int = 1,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        shape = (size, size, in_channels, out_channels)
        self.kernel = declare(nnx.Param, kernel_init(rngs.params(), shape, param_dtype))
        if use_bias:
            self.bias = declare(nnx.Param, jnp.zeros((out_channels,), param_dtype))
        self.use_bias = use_bias
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        bias = self.bias[...] if self.use_bias else None
        return ops.conv(x, self.kernel[...], bias, stride=self.stride, dtype=self.dtype)


class ConvBatchNorm(nnx.Module):
    """A convolution without bias, BatchNorm and ReLU: [B, H, W, in] -> [B, H, W, out] (mmcv's `ConvModule`).

    The kernel starts from Kaiming's normal distribution, of variance 2 / (size * size * out): mmcv's default.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        init = conv_init(size * size * out_channels)
        dtypes: Any = {"dtype": dtype, "param_dtype": param_dtype}
        self.conv = Conv(in_channels, out_channels, size, kernel_init=init, use_bias=False, **dtypes, rngs=rngs)
        self.bn = BatchNorm(out_channels, **dtypes)

    def __call__(self, x: jax.Array, *, training: bool) -> jax.Array:
        return jax.nn.relu(self.bn(self.conv(x), training=training))

    def on_resized(self, maps: Sequence[jax.Array], *, training: bool) -> jax.Array:
        """Computes a call on maps resized bilinearly to the size of the first one and concatenated along channels.

        Args:
            maps: [B, h, w, C] each; their channels add up to `in`.
            training: as in a call.

        Returns:
            [B, H, W, out], H and W those of the first map.
        """
        x = ops.resized_conv(maps, self.conv.kernel[...], dtype=self.conv.dtype)
        return jax.nn.relu(self.bn(x, training=training))


class PatchConv(nnx.Module):
    """A convolution whose kernel is as large as its stride: patch embedding and GSA's sub-sampling.

    [B, H, W, in] -> [B, H // size, W // size, out]; a remainder of H or W that does not fill a patch is dropped, as
    PyTorch's unpadded convolution drops it. Parameters: kernel [size, size, in, out], bias [out].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        init, shape = conv_init(size * size * out_channels), (size, size, in_channels, out_channels)
        self.kernel = declare(nnx.Param, init(rngs.params(), shape, param_dtype))
        self.bias = declare(nnx.Param, jnp.zeros((out_channels,), param_dtype))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        return ops.patch_conv(x, self.kernel[...], self.bias[...], dtype=self.dtype)


class PatchEmbed(nnx.Module):
    """Cuts a map into `size` x `size` patches and embeds each: [B, H, W, in] -> [B, H // size, W // size, out].

    The norm's epsilon is 1e-5, PyTorch's default, unlike the 1e-6 of the blocks' norms (upstream `gvt.py`).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.proj = PatchConv(in_channels, out_channels, size, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.norm = LayerNorm(out_channels, epsilon=1e-5, dtype=dtype, param_dtype=param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.proj(x))


class Mlp(nnx.Module):
    """Two linear layers with an exact (erf) GELU between them: [..., C] -> [..., C]."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        dropout_rate: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.fc1 = Linear(dim, hidden, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.fc2 = Linear(hidden, dim, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout_rate)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        rows = x.reshape(-1, x.shape[-1])  # one axis of positions throughout, as `ops.linear` has it
        hidden = drop(self.dropout, ops.gelu(self.fc1(rows)), rngs)
        return drop(self.dropout, self.fc2(hidden), rngs).reshape(x.shape)
