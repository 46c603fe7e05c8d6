"""Memory and CPU time of inference or a training step on large images: `python tests/scripts/large_images.py`.

Prints the temporary memory in XLA's plan, the peak memory of the process over that before the first run, and the CPU
time of the fastest of `--runs` runs. `--at_once` holds all scores of attention; `--stage` measures one GSA alone, whose
step is its gradient. A process measures one program.
"""
# ruff: noqa: T201 - a script

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).parents[2]))

import twins_jax
from tests.scripts.peak_memory import peak
from twins_jax import ops
from twins_jax.abstract import abstract_model
from twins_jax.backbone import PATCH_SIZES
from twins_jax.config import VARIANTS
from twins_jax.ops import dispatch

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--variant", default="twins_svt_small", help="default: %(default)s")
parser.add_argument("--mode", choices=("infer", "train"), default="infer")
parser.add_argument("--side", type=int, default=1024, help="of the images; default: %(default)s")
parser.add_argument("--batch", type=int, default=1, help="default: %(default)s")
parser.add_argument("--dtype", default="float32", help="default: %(default)s")
parser.add_argument("--runs", type=int, default=2, help="0 only plans; default: %(default)s")
bound = parser.add_mutually_exclusive_group()
bound.add_argument("--at_once", action="store_true", help="hold all scores")
bound.add_argument("--block", metavar="MIB", type=float, help="scores of one image in a block; default: the product's")
parser.add_argument("--stage", type=int, choices=range(1, 5), help="attention of this stage in place of the model")

Program = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and the shapes of its arguments."""


def attention(args: argparse.Namespace) -> Program:
    """Attention of a stage, without the projections, or its gradient."""
    config, stage = VARIANTS[args.variant], args.stage - 1
    side = args.side // math.prod(PATCH_SIZES[: args.stage])
    dim, heads = config.embed_dims[stage], config.num_heads[stage]
    keys = side // config.sub_sampling_ratios[stage]
    shapes = (args.batch, side, side, dim), (args.batch, keys, keys, 2 * dim)
    maps = tuple(jax.ShapeDtypeStruct(shape, args.dtype) for shape in shapes)

    def attend(query: jax.Array, key_value: jax.Array) -> jax.Array:
        return ops.attention(query, key_value, heads)

    if args.mode == "infer":
        return attend, maps
    return jax.grad(lambda *maps: attend(*maps).astype(jnp.float32).sum(), argnums=(0, 1)), maps


def model(args: argparse.Namespace) -> Program:
    """Inference of a model or its training step."""
    apply, params = twins_jax.split_model(
        abstract_model(lambda rngs: twins_jax.create_model(args.variant, dtype=args.dtype, rngs=rngs))
    )
    images = jax.ShapeDtypeStruct((args.batch, args.side, args.side, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((args.batch,), jnp.int32)
    optimizer = optax.adamw(1e-3)

    def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = apply(params, images).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(params, images, labels), state, params)
        return optax.apply_updates(params, updates), state

    if args.mode == "infer":
        return apply, (params, images)
    return step, (params, jax.eval_shape(optimizer.init, params), images, labels)


def main(args: argparse.Namespace) -> None:
    if args.at_once:
        dispatch.BLOCK_SCORES = sys.maxsize
    if args.block:
        dispatch.BLOCK_SCORES = int(args.block * 2**20)
    function, arguments = attention(args) if args.stage else model(args)
    compiled = jax.jit(function).lower(*arguments).compile()
    found = f"planned {compiled.memory_analysis().temp_size_in_bytes / 2**20:,.0f} MiB"
    if args.runs:
        values = jax.tree.map(lambda x: jax.device_put(np.full(x.shape, 0.01, x.dtype)), arguments)
        before, seconds = peak(), []
        for _ in range(args.runs):
            begin = time.process_time()
            jax.block_until_ready(compiled(*values))
            seconds.append(time.process_time() - begin)
        found += f", peak of the process {(peak() - before) / 2**20:,.0f} MiB, CPU time {min(seconds):.2f} s"
    print(*sys.argv[1:], "->", found)


if __name__ == "__main__":
    main(parser.parse_args())
