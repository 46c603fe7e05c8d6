"""Seconds from the start of a command to its first step or answer: `python tests/scripts/start_time.py`.

Two commands: the default training run, up to its first step, and the classification of three pictures by
twins_svt_small with random weights, up to the end. Each starts `--rounds` times without a cache of compiled programs,
with an empty one, and with the one that it left; the median counts.
"""
# ruff: noqa: T201 - a script

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flax import nnx
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

import twins_jax
from tests.support.paths import ROOT

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")


def to_first_step(cache: str, folder: Path) -> float:
    begin = time.perf_counter()
    workdir = tempfile.mkdtemp(dir=folder)
    flags = ["--steps", "2", "--log_every_steps", "1", "--workdir", workdir, "--compilation_cache", cache]
    command = [sys.executable, "-m", "train.main", "digits", *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines, took = [], math.nan
        for line in process.stdout:
            lines.append(line)
            if line.startswith("step 1/"):
                took = time.perf_counter() - begin
        if process.wait() or math.isnan(took):
            sys.exit("".join(lines))
    return took


def to_answer(cache: str, folder: Path) -> float:
    begin = time.perf_counter()
    command = [sys.executable, "-m", "twins_jax.predict", str(folder / "model"), str(folder / "pictures")]
    done = subprocess.run([*command, "--compilation_cache", cache], cwd=ROOT, capture_output=True, text=True)
    took = time.perf_counter() - begin
    if done.returncode:
        sys.exit(done.stderr)
    return took


def make_inputs(folder: Path) -> None:
    twins_jax.save_pretrained(twins_jax.create_model("twins_svt_small", rngs=nnx.Rngs(0)), folder / "model")
    (folder / "pictures").mkdir()
    for name in "abc":
        pixels = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{name}.png")


def measure(run: Callable[[str, Path], float], folder: Path, rounds: int) -> list[float]:
    """The medians without a cache, with an empty one, and with a full one."""
    took = []
    for _ in range(rounds):
        cache = tempfile.mkdtemp(dir=folder)
        took.append([run("off", folder), run(cache, folder), run(cache, folder)])
    return [statistics.median(column) for column in zip(*took, strict=True)]


if __name__ == "__main__":
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        make_inputs(Path(name))
        print(f"{os.cpu_count()} cores\n\n| s | no cache | an empty one | a full one |\n|---|---|---|---|")
        for what, run in (("the first step", to_first_step), ("the answer", to_answer)):
            figures = measure(run, Path(name), args.rounds)
            print(f"| {what} | {' | '.join(f'{value:.1f}' for value in figures)} |", flush=True)
