"""All that exists for XLA's CPU backend: five tricks, and the forms that other functions of `ops` take for its sake.

Other backends see an identity, or the same arithmetic at no cost worth naming. The figures were measured with jaxlib
0.10.2 on two cores of an Intel Xeon, in float32, and are milliseconds of a batch of eight images of 224x224
(docs/design.md). To find out whether a trick can go with a later jaxlib, replace its body as its docstring says,
and compare `python -m train.benchmark --variants twins_pcpvt_small twins_svt_small` before and after, with
`--mode train` where it concerns gradients. Without a trick results round differently, and older runs no longer
continue bit for bit.

The forms, by the function that has them:

- `numerics.linear` and `layers.Mlp` work on one axis of positions. With several axes the backend copies what comes
  before and after a product instead of working in place: inference of PCPVT-S took 359 instead of 293 ms before
  `linear` had one axis, and 293 instead of 280 before `Mlp` had it.
- `numerics.gelu` computes erf; the erfc of `jax.nn.gelu` takes twice as long. Its derivative comes from the input
  alone; without a rule of its own, the erf of every hidden number is stored for it.
- `numerics.layer_norm` normalizes before it scales. The other order, that of `nnx.LayerNorm`, stores an array of scales
  over deviations, as large as the input, in training.
- `attention.softmax_attention` multiplies matrices with one batch axis. With several batch axes, or with heads between
  positions and channels, the products run at a fifth of the speed.
- `convolution.patch_conv` is a matrix product and `convolution.depthwise_conv` nine multiply-adds: with `lax.conv` for
  both, SVT-S took 1.3 times as long, and a convolution with C groups takes ten times as long as the multiply-adds.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.custom_derivatives import SymbolicZero

Leaves = list[jax.Array]


def fusion_barrier(x: jax.Array) -> jax.Array:
    """Returns x unchanged, and keeps XLA from computing what comes before and after it in one library call.

    The backend hands reductions to its library YNNPACK, together with the elementwise operations and the matrix product
    around them. A norm's sums and the product of the normalized map then become one call, which takes up to four times
    as long as the two: 21 instead of 7 ms for the first `fc1` of PCPVT. The library does not know `reduce_precision`.
    XLA keeps that operation although it has nothing to round, because it asks for one bit more than x has. As an
    elementwise operation it costs nothing, on other backends either.

    To check: return x, and compare inference of PCPVT-S.
    """
    info = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, exponent_bits=info.nexp, mantissa_bits=info.nmant + 1)


@jax.custom_jvp
def gradient_barrier(x: jax.Array) -> jax.Array:
    """Returns x unchanged, and makes XLA write its cotangent to memory once.

    The cotangent of a residual stream is a sum over all later blocks. The backend fuses the sum into each of its
    consumers, and computes it anew for each, from the last block on: a training step of SVT-S took 1,740 instead of
    1,167 ms. It drops `lax.optimization_barrier` before it fuses (1,747 ms), but keeps a conditional's operand.
    Other backends see the identity, and a pass that only goes forward sees it on every backend.

    To check: return x without the derivative below, and compare training.
    """
    return x


@gradient_barrier.defjvp
def _gradient_barrier_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    if 0 in x.shape:
        return x, tangent

    def on_cpu(tangent: jax.Array) -> jax.Array:
        # Both branches are the identity, but XLA does not find that out, nor which of them is taken.
        return lax.cond(x.ravel()[0] < 0, lambda t: t, lambda t: t * 1.0, tangent)

    return x, lax.platform_dependent(tangent, cpu=on_cpu, default=lambda tangent: tangent)


BLOCK = 64
"""Longest run of products that is summed up in sequence under full precision."""


def blocked_dot(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The product of x [..., K] and kernel [K, N]: [..., N].

    The backend sums the K products of one output in sequence, whatever the precision. Its rounding error grows with K:
    at K = 512 it is 1.4 times that of PyTorch's blocked sums, and 2 to 3 times over a whole Twins model. Where
    "highest" (or "float32") is the precision asked for with `jax.default_matmul_precision`, the product is the sum of
    the products of blocks of `BLOCK` instead. It then rounds as little as PyTorch's, but takes longer and more memory.
    Only comparisons with PyTorch use it.

    To check: return the first product always, and run tests/parity.
    """
    length = kernel.shape[0]
    full_precision = jax.config.values["jax_default_matmul_precision"] in ("highest", "float32")
    if length <= BLOCK or jax.default_backend() != "cpu" or not full_precision:
        return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    blocks = -(-length // BLOCK)
    padding = (0, blocks * BLOCK - length)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [padding]).reshape(*x.shape[:-1], blocks, BLOCK)
    kernel = jnp.pad(kernel, [padding, (0, 0)]).reshape(blocks, BLOCK, -1)
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (1,)), ((x.ndim - 2,), (0,)))).sum(axis=0)


LARGE_MAP = 2**22
"""Numbers of a map from which on the gradient of a kernel is computed tap by tap: 32x32 positions of 512 channels of 8
images."""


def by_taps(conv: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes conv(x, kernel), zero-padded and of stride 1, as one matrix product for each tap where x is large.

    It is for the transpose with respect to the kernel, which is the kernel's gradient. XLA makes that a convolution
    whose kernel is as large as the map, and the backend takes long for it: 19.3 instead of 3.5 s for two maps of
    128x128 with 512 channels, and 1.0 instead of 0.5 s for two of 64x64; smaller maps gain nothing (jaxlib 0.10.2,
    float32, two loaded cores of an AMD EPYC). The convolution itself and its gradient with respect to x are faster as
    they are. Other backends compute conv(x, kernel).

    To check: return conv(x, kernel) always, and compare `--head upernet --size 512 --batch 2 --mode train`.

    Args:
        conv: the convolution.
        x: [B, H, W, in].
        kernel: [size, size, in, out] of odd size.

    Returns:
        [B, H, W, out].
    """
    if not isinstance(x.size, int) or x.size < LARGE_MAP:
        return conv(x, kernel)

    def on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        size = kernel.shape[0]
        margin = (size // 2, size // 2)
        padded = jnp.pad(x, ((0, 0), margin, margin, (0, 0)))

        # In a loop that keeps no shifted map for the transpose: all at once they were 1.2 of 4.3 GB of a training step.
        @jax.checkpoint
        def add(total: jax.Array, tap: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            place, product = tap
            first = jnp.zeros_like(place[0])
            rows = lax.dynamic_slice(padded, (first, *place, first), (batch, height, width, channels))
            return total + blocked_dot(rows.reshape(-1, channels), product), None

        places = np.indices((size, size), np.int32).reshape(2, -1).T
        total = jnp.zeros((batch * height * width, kernel.shape[-1]), x.dtype)
        total, _ = lax.scan(add, total, (places, kernel.reshape(size * size, channels, -1)))
        return total.reshape(batch, height, width, -1)

    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=conv)


POSITIONS = 6272
"""Positions of a map in one chunk: two images of 224x224 in the first stage, 32 in the third."""


def by_image(module: nnx.Module, x: jax.Array, rngs: nnx.Rngs | None = None, *, stride: int) -> jax.Array:
    """Computes module(x, rngs) of a module that acts on each image alone, a few images at a time where that is faster.

    It is faster for inference of a large batch on a CPU, see `in_batch_chunks`. The batch is computed at once in four
    cases: with `rngs`, which draw for all of it; outside `jit`, where every call would compile the loop; on several
    devices, where rows would have to be gathered; and with an unknown batch, as in an exported program.

    To check: return module(x, rngs) always, and compare inference at batch 8 and 32. At batch 32, PCPVT-S took 1,111 ms
    with chunks of two images and 1,220 at once, SVT-S 869 and 923; at batch 8 the gain was 10 and 1 ms.

    Args:
        module: maps x and rngs to [B, H // stride, W // stride, C].
        x: [B, H, W, C_in].
        rngs: `dropout` stream, or None for a deterministic pass.
        stride: the module's.

    Returns:
        [B, H // stride, W // stride, C].
    """
    batch, height, width, _ = x.shape
    if rngs is not None or not isinstance(x, jax.core.Tracer) or jax.device_count() > 1 or not isinstance(batch, int):
        return module(x, rngs)
    size = chunk_size(batch, (height // stride) * (width // stride))
    if size == batch:
        return module(x, None)
    graph, state = nnx.split(module)
    leaves, tree = jax.tree.flatten(state)

    def run(leaves: Leaves, x: jax.Array) -> jax.Array:
        # Variables are made anew from arrays in each trace: NNX lets no inner trace use those of an outer one.
        y: jax.Array = nnx.merge(graph, jax.tree.unflatten(tree, leaves))(x, None)
        return y

    return in_batch_chunks(run, leaves, x, size)


def chunk_size(batch: int, positions: int) -> int:
    """Images in a chunk: the largest divisor of `batch` within `POSITIONS`, if it fills half of it at least.

    Args:
        batch: images in all.
        positions: of the map of one image.

    Returns:
        `batch`, for no chunks, where the batch is small or has no divisor of this kind.
    """
    most = max(POSITIONS // positions, 1)
    size = next((size for size in range(min(most, batch), 0, -1) if batch % size == 0), batch)
    return size if 2 * size >= most else batch


def in_batch_chunks(
    run: Callable[[Leaves, jax.Array], jax.Array], params: Leaves, x: jax.Array, size: int
) -> jax.Array:
    """run(params, x), computed for `size` rows of x [B, ...] at a time on a CPU, one chunk after the other.

    An MLP's hidden activations of the whole batch are written to memory and read again. Those of a chunk stay in the
    cache, and every call takes less memory anew from the system. Other backends compute the batch at once. Derivatives
    also compute it at once, because they need the activations of the whole batch. Both versions are traced; XLA keeps
    one when it lowers for a platform.

    Args:
        run: acts on each row alone.
        params: its parameters.
        x: B rows, a multiple of `size`.
        size: rows in a chunk.
    """

    @jax.custom_jvp
    def chunked(params: Leaves, x: jax.Array) -> jax.Array:
        def on_cpu(params: Leaves, x: jax.Array) -> jax.Array:
            y = lax.map(partial(run, params), x.reshape(-1, size, *x.shape[1:]))
            return y.reshape(-1, *y.shape[2:])

        return lax.platform_dependent(params, x, cpu=on_cpu, default=run)

    @partial(chunked.defjvp, symbolic_zeros=True)
    def _chunked_jvp(primals: tuple[Leaves, jax.Array], tangents: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
        # Only along what moves: products with zeros would be computed, and jaxlib 0.10.2 computes some of them wrongly.
        leaves, tree = jax.tree.flatten(primals)
        moves = [not isinstance(tangent, SymbolicZero) for tangent in jax.tree.leaves(tangents)]

        def run_moving(*moving: jax.Array) -> jax.Array:
            moved = iter(moving)
            mixed = (next(moved) if m else leaf for m, leaf in zip(moves, leaves, strict=True))
            return run(*jax.tree.unflatten(tree, mixed))

        moving = [leaf for m, leaf in zip(moves, leaves, strict=True) if m]
        along = [tangent for m, tangent in zip(moves, jax.tree.leaves(tangents), strict=True) if m]
        return jax.jvp(run_moving, moving, along)

    return chunked(params, x)
