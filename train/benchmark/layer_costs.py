"""The arithmetic that each part of a Twins classifier needs, and the fewest bytes it can move, from its config alone.

FLOPs are two for each multiply-add of the matrix products and of the PEG, windows' padding included as the plain
formulation computes it: where windows do not tile a map, the kernels of `ops.pallas` need less. Softmax, GELU,
norms and additions are left out: they take a small share of the arithmetic, and the figures are meant as a lower bound.

Bytes are those that must cross the device's memory if each operation is one kernel that reads every input once, writes
every output once, and keeps nothing for the next one:

- biases, GELU and the residual addition ride on the matrix product beside them; the last norm takes the mean along;
- attention reads query, key and value and writes its result: no scores, no copies of windows or heads;
- activations have the size of `config.dtype`, images are float32, parameters and their gradients `config.param_dtype`;
- backward, an operation reads what it read forward and its output's gradient, and writes the gradients of its input and
  parameters. Of the hidden layer one copy serves both directions, and where two branches' gradients meet, the sum rides
  on the later one.
"""

import dataclasses
import math

import jax.numpy as jnp

from twins_jax.backbone import PATCH_SIZES
from twins_jax.config import TwinsConfig

IMAGE_BYTES = 4
ADAMW_ARRAYS = 7
"""AdamW reads parameter, gradient and both moments, and writes all but the gradient."""


@dataclasses.dataclass(frozen=True)
class Work:
    """The cost of one pass.

    Attributes:
        flops: floating-point operations.
        bytes: read and written.
    """

    flops: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Operation:
    """One layer of the model.

    Attributes:
        part: to which it counts: "patch", "norms", "qkv", "sub-sampling", "LSA", "GSA", "projection", "MLP", "PEG",
            "head" or "AdamW".
        path: of its module, as in a parameter's name, in the first block that has it; "" for AdamW.
        count: times that the model has it.
        shape: of its input [B, H, W, C]; of LSA and GSA, which stand for the attention between the projections, the
            block's. () for AdamW.
        parameters: of one.
        forward: one's forward pass.
        backward: one's backward pass; of AdamW, its update.
        joins: backward, the gradient of its input is added to that of another branch.
    """

    part: str
    path: str
    count: int
    shape: tuple[int, ...]
    parameters: int
    forward: Work
    backward: Work
    joins: bool = False


def count(config: TwinsConfig, num_classes: int, batch: int, height: int, width: int) -> list[Operation]:
    """Lists the operations of `TwinsClassifier(config, num_classes)` on a batch of images, and of a step of AdamW.

    Args:
        config: the model's.
        num_classes: outputs of its head, at least 1.
        batch: images.
        height: of an image, at least 32.
        width: of an image, at least 32.
    """
    activation, parameter = (jnp.dtype(dtype).itemsize for dtype in (config.dtype, config.param_dtype))
    layers = _Layers(batch, activation, parameter)
    operations = []
    for stage, dim in enumerate(config.embed_dims):
        height, width = height // PATCH_SIZES[stage], width // PATCH_SIZES[stage]
        operations += _stage(layers, config, stage, (height, width, dim))
    operations += [
        layers.pooled_norm("norm", (height, width, dim)),
        layers.product("head", "head", 1, (1, 1, dim), num_classes),
    ]
    parameters = sum(operation.count * operation.parameters for operation in operations)
    nothing, update = Work(0, 0), Work(0, ADAMW_ARRAYS * parameter * parameters)
    return [*operations, Operation("AdamW", "", 1, (), 0, nothing, update)]


Map = tuple[int, int, int]
"""Height, width and channels."""


def _stage(layers: "_Layers", config: TwinsConfig, stage: int, shape: Map) -> list[Operation]:
    height, width, dim = shape
    size, depth = PATCH_SIZES[stage], config.depths[stage]
    channels = config.embed_dims[stage - 1] if stage else config.in_channels
    path = f"backbone/stages/{stage}"
    block = f"{path}/blocks/0"
    operations = [
        layers.patches("patch", f"{path}/patch_embed/proj", 1, (height, width), size, channels, dim, first=not stage),
        layers.norm(f"{path}/patch_embed/norm", 1, shape),
        layers.norm(f"{block}/norm1", depth, shape, residual=True),
        layers.product("projection", f"{block}/attn/proj", depth, shape, dim, residual=True),
        layers.norm(f"{block}/norm2", depth, shape, residual=True),
        layers.mlp(f"{block}/mlp", depth, shape, dim * config.mlp_ratios[stage]),
        layers.peg(f"{path}/peg", shape),
    ]
    lsa = [block for block in range(depth) if config.is_lsa(block)]
    gsa = [block for block in range(depth) if not config.is_lsa(block)]
    if lsa and config.window_size is not None:
        operations += _lsa(layers, f"{path}/blocks/{lsa[0]}/attn", len(lsa), shape, config.window_size)
    if gsa:
        ratio = config.sub_sampling_ratios[stage]
        operations += _gsa(layers, f"{path}/blocks/{gsa[0]}/attn", len(gsa), shape, ratio)
    return operations


def _lsa(layers: "_Layers", path: str, count: int, shape: Map, window: int) -> list[Operation]:
    height, width, dim = shape
    tiled = (height + -height % window, width + -width % window)
    positions = tiled[0] * tiled[1]
    return [
        layers.product("qkv", f"{path}/qkv", count, (*tiled, dim), 3 * dim),
        layers.attention("LSA", path, count, shape, queries=positions, keys=positions, keys_of_query=window**2),
    ]


def _gsa(layers: "_Layers", path: str, count: int, shape: Map, ratio: int) -> list[Operation]:
    height, width, dim = shape
    sub_sampled = (height // ratio, width // ratio)
    keys = sub_sampled[0] * sub_sampled[1]
    operations = [
        layers.product("qkv", f"{path}/q", count, shape, dim),
        layers.product("qkv", f"{path}/kv", count, (*sub_sampled, dim), 2 * dim, branch=ratio == 1),
        layers.attention("GSA", path, count, shape, queries=height * width, keys=keys, keys_of_query=keys),
    ]
    if ratio > 1:
        operations += [
            layers.patches("sub-sampling", f"{path}/sub_sample", count, sub_sampled, ratio, dim, dim, branch=True),
            layers.norm(f"{path}/norm", count, (*sub_sampled, dim)),
        ]
    return operations


@dataclasses.dataclass(frozen=True)
class _Layers:
    """Makes operations; `activation` and `parameter` are bytes of one number."""

    batch: int
    activation: int
    parameter: int

    def product(
        self,
        part: str,
        path: str,
        count: int,
        shape: Map,
        outputs: int,
        *,
        residual: bool = False,
        branch: bool = False,
    ) -> Operation:
        """A linear layer; its result is added to a `residual`, its input's gradient to that of another `branch`."""
        height, width, channels = shape
        rows = self.batch * height * width
        read, written = rows * channels, rows * outputs
        parameters = (channels + 1) * outputs
        flops = 2 * rows * channels * outputs
        forward = read + written * (2 if residual else 1)
        backward = read * (3 if branch else 2) + written
        return Operation(
            part,
            path,
            count,
            (self.batch, *shape),
            parameters,
            Work(flops, self.activation * forward + self.parameter * parameters),
            Work(2 * flops, self.activation * backward + self.parameter * 2 * parameters),
            joins=branch,
        )

    def patches(
        self,
        part: str,
        path: str,
        count: int,
        shape: tuple[int, int],
        size: int,
        channels: int,
        outputs: int,
        *,
        first: bool = False,
        branch: bool = False,
    ) -> Operation:
        """A convolution of patches to a map of `shape`; the `first` one reads images, which need no gradient."""
        inputs = size**2 * channels
        layer = self.product(part, path, count, (*shape, inputs), outputs, branch=branch)
        shape_read = (self.batch, shape[0] * size, shape[1] * size, channels)
        if not first:
            return dataclasses.replace(layer, shape=shape_read)
        read = self.batch * shape[0] * shape[1] * inputs
        forward = Work(layer.forward.flops, layer.forward.bytes + read * (IMAGE_BYTES - self.activation))
        backward = Work(layer.forward.flops, layer.backward.bytes + read * (IMAGE_BYTES - 2 * self.activation))
        return dataclasses.replace(layer, shape=shape_read, forward=forward, backward=backward)

    def mlp(self, path: str, count: int, shape: Map, hidden: int) -> Operation:
        first = self.product("MLP", path, count, shape, hidden)
        second = self.product("MLP", path, count, (*shape[:2], hidden), shape[2], residual=True)
        return dataclasses.replace(
            first,
            parameters=first.parameters + second.parameters,
            forward=_sum(first.forward, second.forward),
            backward=_sum(first.backward, second.backward),
        )

    def attention(
        self, part: str, path: str, count: int, shape: Map, *, queries: int, keys: int, keys_of_query: int
    ) -> Operation:
        """The attention between the projections, whose result has the real positions only."""
        height, width, channels = shape
        flops = 2 * 2 * self.batch * queries * keys_of_query * channels
        read, written = (queries + 2 * keys) * channels, height * width * channels
        forward, backward = read + written, 2 * read + written
        # Backward recomputes the scores, half as much again as its own products: not counted, as it need not.
        return Operation(
            part,
            path,
            count,
            (self.batch, *shape),
            0,
            Work(flops, self.activation * self.batch * forward),
            Work(2 * flops, self.activation * self.batch * backward),
        )

    def norm(self, path: str, count: int, shape: Map, *, residual: bool = False) -> Operation:
        """With `residual` the gradient of its input is added to the residual stream's."""
        norm = self._by_channel("norms", path, shape, parameters=2, forward=2, backward=4 if residual else 3)
        return dataclasses.replace(norm, count=count, joins=residual)

    def pooled_norm(self, path: str, shape: Map) -> Operation:
        norm = self._by_channel("norms", path, shape, parameters=2, forward=1, backward=2)
        pooled = Work(0, self.activation * self.batch * shape[2])
        return dataclasses.replace(norm, forward=_sum(norm.forward, pooled), backward=_sum(norm.backward, pooled))

    def peg(self, path: str, shape: Map) -> Operation:
        return self._by_channel("PEG", path, shape, parameters=9 + 1, forward=2, backward=3, flops=2 * 9)

    def _by_channel(
        self, part: str, path: str, shape: Map, *, parameters: int, forward: int, backward: int, flops: int = 0
    ) -> Operation:
        """Passes that move `forward` and `backward` maps, with `parameters` a channel and `flops` a number."""
        numbers, parameters = self.batch * math.prod(shape), parameters * shape[2]
        return Operation(
            part,
            path,
            1,
            (self.batch, *shape),
            parameters,
            Work(flops * numbers, self.activation * forward * numbers + self.parameter * parameters),
            Work(2 * flops * numbers, self.activation * backward * numbers + self.parameter * 2 * parameters),
        )


def _sum(first: Work, second: Work) -> Work:
    return Work(first.flops + second.flops, first.bytes + second.bytes)
