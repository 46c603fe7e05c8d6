"""Memory of a training step on CPUs, as JAX and XLA count it: `python tests/scripts/training_memory.py`.

Prints, as a Markdown table, the arrays that the backward pass keeps for an image, in MiB, with `remat` in brackets:
the difference of batches of 8 and 4, before a compiler fuses anything. `--planned BATCH` also compiles steps of AdamW
of such a batch, and prints their temporary memory. `--at_once` holds all scores of attention on large images.
"""
# ruff: noqa: T201 - a script

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[2]))

import twins_jax
from twins_jax.abstract import abstract_model
from twins_jax.ops import dispatch

CLASSES = 1000
DTYPES = ("bfloat16", "float32")


def abstract_loss(name: str, dtype: str, remat: bool) -> tuple[Any, twins_jax.Params]:
    """Returns (params, images, labels, key) -> loss, with stochastic depth, and the shapes of the parameters."""

    def make(rngs: nnx.Rngs) -> twins_jax.TwinsClassifier:
        return twins_jax.create_model(
            name, num_classes=CLASSES, dtype=dtype, remat=remat, drop_path_rate=0.2, rngs=rngs
        )

    apply, params = twins_jax.split_model(abstract_model(make))

    def loss(params: twins_jax.Params, images: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array:
        logits = apply(params, images, key).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return loss, params


def inputs(batch: int, side: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct, Any]:
    """Returns the shapes of images, labels and key."""
    images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.float32)
    return images, jax.ShapeDtypeStruct((batch,), jnp.int32), jax.eval_shape(lambda: jax.random.key(0))


def kept(name: str, dtype: str, remat: bool, batch: int, side: int) -> int:
    """Returns the bytes that the backward pass keeps."""
    loss, params = abstract_loss(name, dtype, remat)
    backward = jax.eval_shape(
        lambda p, *of_batch: jax.vjp(lambda p: loss(p, *of_batch), p)[1], params, *inputs(batch, side)
    )
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))


def planned(name: str, dtype: str, remat: bool, batch: int, side: int) -> int:
    """Returns the bytes of temporary memory in XLA's plan of a step."""
    loss, params = abstract_loss(name, dtype, remat)
    optimizer = optax.adamw(1e-3)

    def step(params: Any, state: Any, *of_batch: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(params, *of_batch), state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(optimizer.init, params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, *inputs(batch, side)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
variants = ["twins_svt_small", "twins_pcpvt_small", "twins_svt_base"]
parser.add_argument("--variants", nargs="+", default=variants, help="default: %(default)s")
parser.add_argument("--planned", metavar="BATCH", type=int, help="also compile steps, which takes minutes")
parser.add_argument("--side", type=int, default=224, help="of the images; default: %(default)s")
parser.add_argument("--at_once", action="store_true", help="hold all scores of attention")
args = parser.parse_args()
if args.at_once:
    dispatch.BLOCK_SCORES = sys.maxsize

print(f"| MiB an image | {' | '.join(DTYPES)} |\n|---|---|---|")
for name in args.variants:
    cells = []
    for dtype in DTYPES:
        sizes = [
            np.subtract(*(kept(name, dtype, remat, batch, args.side) for batch in (8, 4))) / 4
            for remat in (False, True)
        ]
        cells.append("{:.0f} ({:.0f})".format(*(size / 2**20 for size in sizes)))
    print(f"| `{name}` | {' | '.join(cells)} |", flush=True)
if args.planned:
    for name in args.variants:
        for dtype in DTYPES:
            for remat in (False, True):
                size = planned(name, dtype, remat, args.planned, args.side) / 2**20
                print(f"{name}, batch {args.planned}, {dtype}, remat={remat}: {size:,.0f} MiB", flush=True)
