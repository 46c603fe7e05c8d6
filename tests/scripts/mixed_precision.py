"""Trains on digits in bfloat16 and in float32: `python tests/scripts/mixed_precision.py [--seeds 5] [--steps 200]`.

Prints for each seed the distance of the two runs' losses, beside that of the float32 runs of two seeds; and for the
trained weights the share of held-out digits and of random images on whose class the two dtypes agree.
"""
# ruff: noqa: T201 - a script

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

sys.path.insert(0, str(Path(__file__).parents[2]))

import twins_jax
from tests.support import runs
from tests.support.classification import eval_batches
from train.recipes import digits
from twins_jax.preprocess import normalize

WINDOW = 20
"""Steps of a moving average."""

LAST = 50
"""Steps at the end."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        losses = {}
        for seed in range(args.seeds):
            for dtype in ("float32", "bfloat16"):
                arguments = ["--steps", str(args.steps), "--seed", str(seed)]
                losses[dtype, seed] = train(folder / f"{dtype}-{seed}", folder / "compiled", dtype, arguments)
            gaps = compare(losses["bfloat16", seed], losses["float32", seed])
            print(f"seed {seed}: bfloat16 and float32 {gaps}", flush=True)
            print(f"seed {seed}: top-1 agreement {agreement(folder / f'float32-{seed}')}", flush=True)
        for pair in itertools.combinations(range(args.seeds), 2):
            print(f"seeds {pair}: float32 {compare(*(losses['float32', seed] for seed in pair))}", flush=True)
    return 0


def train(workdir: Path, compile_cache: Path, dtype: str, arguments: list[str]) -> np.ndarray:
    """Runs the digits recipe in a process of its own; returns the loss of each step."""
    arguments = [*arguments, "--workdir", str(workdir), "--model.dtype", dtype, "--log_every_steps", "1"]
    process = runs.start(arguments, compile_cache)
    output, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}\n{output}\n{errors}")
    return np.array([line["loss"] for line in runs.metrics(workdir) if line["split"] == "train"])


def compare(losses: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """The distance of two runs: of their last losses' means, relatively, and of their moving averages, at most."""
    averages, other_averages = (np.convolve(run, np.full(WINDOW, 1 / WINDOW), "valid") for run in (losses, others))
    return {
        "last": abs(float(losses[-LAST:].mean() / others[-LAST:].mean()) - 1),
        "moving_average": float(np.abs(averages - other_averages).max()),
    }


def agreement(workdir: Path) -> dict[str, float]:
    """The share of images of which a run's weights name the same class in bfloat16 and in float32."""
    held_out = list(eval_batches(digits().data, 128))
    images = {
        "digits": np.concatenate([np.asarray(normalize(batch["image"]))[batch["mask"]] for batch in held_out]),
        "noise": np.random.default_rng(0).standard_normal((1000, 32, 32, 3), np.float32),
    }

    def classes(dtype: DTypeLike, images: np.ndarray) -> np.ndarray:
        apply, params = twins_jax.split_model(twins_jax.from_pretrained(workdir, dtype=dtype))
        return np.asarray(jax.jit(apply)(params, images)).argmax(axis=1)

    return {name: float((classes(jnp.bfloat16, x) == classes(jnp.float32, x)).mean()) for name, x in images.items()}


if __name__ == "__main__":
    sys.exit(main())
