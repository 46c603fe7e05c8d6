import itertools
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import grain
import numpy as np
import pytest

from tests.support.paths import ROOT
from train.config import DataConfig
from train.data import workers
from train.data.pipeline import train_batches
from train.data.workers import SHARED_MEMORY
from twins_jax import InputError

CONFIG = DataConfig(threads=1, workers=1)
BATCH_BYTES = 4 * 8


def batches() -> grain.IterDataset:
    return train_batches(list(range(20)), [ToArray()], CONFIG, 4, seed=0)


class ToArray(grain.transforms.Map):
    def map(self, element: int) -> dict[str, np.ndarray]:
        return {"x": np.array([element], np.int64)}


needs_shared_memory = pytest.mark.skipif(not os.path.isdir(SHARED_MEMORY), reason="Linux's shared memory")


@needs_shared_memory
@pytest.mark.parametrize(("free", "fits"), [(7 * BATCH_BYTES, True), (7 * BATCH_BYTES - 1, False), (0, False)])
def test_shared_memory_is_checked_before_workers_start(free: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    if fits:
        iter(batches()).close()
        return
    text = r"data\.workers=1: must be 0, or /dev/shm larger: 1 worker\(s\) need .* \(in Docker: --shm-size=\d+m\)$"
    with pytest.raises(InputError, match=text):
        iter(batches())
    assert not multiprocessing.active_children()


def test_workers_outlive_signals_to_the_whole_job_and_a_killed_one_is_named() -> None:
    iterator = iter(batches())
    next(iterator)
    (process,) = multiprocessing.active_children()
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        os.kill(process.pid or 0, signum)
    for _ in range(20):
        next(iterator)
    assert multiprocessing.active_children() == [process]

    os.kill(process.pid or 0, signal.SIGBUS)
    text = (
        "^data.workers: a worker process was killed by SIGBUS: /dev/shm is full; use --data.workers 0, or .*--shm-size"
    )
    with pytest.raises(InputError, match=text):
        list(itertools.islice(iterator, 20))  # some are in shared memory already
    iterator.close()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-signal.SIGKILL, "was killed by SIGKILL, as the kernel does where memory runs out; use fewer --data.workers"),
        (-signal.SIGSEGV, "was killed by SIGSEGV; start again"),
        (1, "ended with exit code 1; "),
    ],
)
def test_other_deaths(code: int, words: str) -> None:
    assert workers._death(code).startswith(f"data.workers: a worker process {words}")


PROGRAM = """
import multiprocessing, os, signal, time
from tests.train.data.test_workers import batches

if __name__ == "__main__":
    iterator = iter(batches())
    next(iterator)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_the_training_process(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py")]
    run = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (-signal.SIGKILL, "")
    assert re.fullmatch(r"\d+\n", run.stdout)
    end = time.monotonic() + 30
    while os.path.exists(f"/proc/{int(run.stdout)}") and time.monotonic() < end:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{int(run.stdout)}")
