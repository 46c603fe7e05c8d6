"""Memory and CPU time of inference or a training step on large images: `python tests/scripts/large_images.py`.

Prints the temporary memory in XLA's plan, the peak memory of the process over that before the first run, and the CPU
time of the fastest of `--runs` runs. `--at_once` holds all scores of attention. A process measures one program.
"""
# ruff: noqa: T201 - a script

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).parents[2]))

import twins_jax
from tests.scripts.peak_memory import peak
from twins_jax.abstract import abstract_model
from twins_jax.ops import dispatch

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--variant", default="twins_svt_small", help="default: %(default)s")
parser.add_argument("--mode", choices=("infer", "train"), default="infer")
parser.add_argument("--side", type=int, default=1024, help="of the images; default: %(default)s")
parser.add_argument("--batch", type=int, default=1, help="default: %(default)s")
parser.add_argument("--dtype", default="float32", help="default: %(default)s")
parser.add_argument("--runs", type=int, default=2, help="0 only plans; default: %(default)s")
parser.add_argument("--at_once", action="store_true", help="hold all scores")


def main(args: argparse.Namespace) -> None:
    if args.at_once:
        dispatch.LARGE_SCORES = sys.maxsize
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
        program = jax.jit(apply)
        arguments: tuple[Any, ...] = (params, images)
    else:
        program = jax.jit(step)
        arguments = (params, jax.eval_shape(optimizer.init, params), images, labels)
    compiled = program.lower(*arguments).compile()
    found = f"planned {compiled.memory_analysis().temp_size_in_bytes / 2**20:,.0f} MiB"
    if args.runs:
        values = jax.tree.map(lambda x: jax.device_put(np.full(x.shape, 0.01, x.dtype)), arguments)
        before, seconds = peak(), []
        for _ in range(args.runs):
            begin = time.process_time()
            jax.block_until_ready(compiled(*values))
            seconds.append(time.process_time() - begin)
        found += f", peak of the process {(peak() - before) / 2**20:,.0f} MiB, CPU time {min(seconds):.2f} s"
    print(
        args.variant, args.mode, args.side, args.batch, args.dtype, "at once:" if args.at_once else "in blocks:", found
    )


if __name__ == "__main__":
    main(parser.parse_args())
