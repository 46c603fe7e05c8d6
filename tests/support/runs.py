"""Real training runs on digits in processes of their own, for the tests and for `soak.py`."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from tests.support.paths import ROOT

# Random in the data, in the step (erasing) and in the model (drop-path, the recipe's), and with a moving average.
ARGUMENTS = (
    *("--batch_size", "8", "--eval_batch_size", "100", "--log_every_steps", "2"),
    *("--mix.erase_probability", "0.25", "--optim.ema_decay", "0.9"),
)

MIN_COMPILE_SECONDS = 0.03
"""Of programs that a cache keeps: to find, read and load one takes 0.013."""

TRAIN = (sys.executable, "-m", "train.main")


def start(
    arguments: Sequence[str], compile_cache: Path, command: Sequence[str] = TRAIN, **environment: str
) -> subprocess.Popen[str]:
    """Starts a run in a process of its own; programs that an earlier run compiled are read from the cache."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    variables = os.environ | cache_in(compile_cache) | environment
    return subprocess.Popen([*command, *arguments], cwd=ROOT, env=variables, **pipes)


def cache_in(folder: Path) -> dict[str, str]:
    """The environment of a process that keeps all programs it compiles in a folder, and reads them from it."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": str(MIN_COMPILE_SECONDS),
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def signal_when(process: subprocess.Popen[str], signum: int, ready: Callable[[], bool], delay: float = 0.0) -> None:
    """Sends a signal `delay` seconds after `ready` holds; does nothing if the process ends before."""
    while not ready():
        if process.poll() is not None:
            return
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signum)


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl without the fields that measure time."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    timing = ("images_per_s", "mfu")
    return [{key: value for key, value in json.loads(line).items() if key not in timing} for line in lines]


def checkpoints(workdir: Path) -> list[int]:
    """The steps of the complete checkpoints."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []


def content(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder, and None for the folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def saved(workdir: Path, step: int) -> dict[str, Any]:
    """The content of a step's checkpoint, by name: arrays, and the position in the data."""
    folder = workdir.absolute() / "checkpoints" / str(step)
    state: dict[str, Any] = {"data": (folder / "data" / "process_0-of-1.json").read_text()}
    with ocp.PyTreeCheckpointer() as checkpointer:
        for item in ("params", "batch_stats", "opt_state", "ema"):
            if not (folder / item).exists():
                continue
            tree = traverse_util.flatten_dict({item: checkpointer.restore(folder / item)}, sep="/")
            state |= {name: np.asarray(leaf) for name, leaf in tree.items()}
    return state


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """The names of the contents that differ, in any bit, between two checkpoints."""
    names = sorted(first.keys() | second.keys())
    return [name for name in names if name not in first or name not in second or not _same(first[name], second[name])]


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, str):
        return first == second
    return first.shape == second.shape and first.dtype == second.dtype and first.tobytes() == second.tobytes()
