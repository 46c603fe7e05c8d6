"""Worker processes that build batches: their room in shared memory, their signals, and the news of their death."""

import contextlib
import multiprocessing.connection
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
from absl import flags

from twins_jax.errors import InputError, is_integer

SHARED_MEMORY = "/dev/shm"
"""The file system through which processes hand over batches on Linux; other systems have none."""

BATCHES_A_WORKER = 4
"""Batches of a worker in shared memory: Grain 0.2.18 holds one and waits with another, in each of the two processes."""

BATCHES_IN_USE = 3
"""Batches in shared memory that the training process works on."""

GRACE_SECONDS = 30
"""Time for which a worker outlives SIGTERM, within which the training process saves and closes it."""

_STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class WorkersDataset(grain.IterDataset):
    """Reads a data set in worker processes.

    Iterating raises InputError where shared memory is too small for the batches, or a worker was killed. The training
    process decides how a run ends: signals to a whole terminal or job leave the workers alive until it closes them. A
    worker whose training process is gone ends.

    Args:
        dataset: of batches.
        workers: number of processes.
        batch_bytes: returns the size of the largest batch; it may read an example.
    """

    def __init__(self, dataset: grain.IterDataset, workers: int, batch_bytes: Callable[[], int]) -> None:
        # Grain reads absl flags when it starts processes, and only a main that uses absl has parsed them.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        super().__init__(dataset.mp_prefetch(grain.MultiprocessingOptions(workers), worker_init_fn=_begin))
        self._workers = workers
        self._batch_bytes = batch_bytes

    def __iter__(self) -> grain.DatasetIterator:
        if os.path.isdir(SHARED_MEMORY):
            _check_shared_memory(self._workers, self._batch_bytes())
        return _WorkersIterator(iter(self._parent), self._workers)


class _WorkersIterator(grain.DatasetIterator):
    def __init__(self, parent: grain.DatasetIterator, workers: int) -> None:
        super().__init__(parent)
        self._workers = workers
        self._started = False

    def __next__(self) -> Any:
        try:
            if self._started:
                return next(self._parent)
            with _signals_blocked():
                element = next(self._parent)
            self._started = True
            return element
        except RuntimeError as error:
            if found := re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error)):
                raise InputError(_death(int(found[1]))) from error
            raise

    def get_state(self) -> dict[str, Any]:
        return position(self._parent.get_state())

    def set_state(self, state: dict[str, Any]) -> None:
        read, workers = state["next_index"], self._workers  # worker i reads the batches i, i + workers, and onward
        states = [{"next_index": len(range(worker, read, workers))} for worker in range(workers)]
        turn = {"next_index_in_cycle": read % workers, "iterators_in_use_states": states}
        self._parent.set_state({**self._parent.get_state(), **turn})

    def close(self) -> None:
        super().close()
        self._parent.close()


def position(state: Mapping[str, Any]) -> dict[str, int]:
    """Returns the state of an iterator over batches without worker processes, whatever number of them it is from.

    Args:
        state: {"next_index": the number of batches that were read}, or Grain's own of an iterator with workers.

    Raises:
        ValueError: it is neither.
    """
    states = state.get("iterators_in_use_states", [state])
    read = [each.get("next_index") for each in states if each]
    if not read or not all(is_integer(number, least=0) for number in read):
        raise ValueError(f"{read}: no position in the data")
    return {"next_index": sum(read)}


def _check_shared_memory(workers: int, batch_bytes: int) -> None:
    """Raises InputError where the kernel would kill workers: it does that to a process that cannot get a page."""
    needed, free = (BATCHES_A_WORKER * workers + BATCHES_IN_USE) * batch_bytes, shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise InputError(
            f"data.workers={workers!r}: must be 0, or {SHARED_MEMORY} larger: {workers} worker(s) need "
            f"{needed / 2**20:.0f} MiB of it for batches of {batch_bytes / 2**20:.1f} MiB, and "
            f"{free / 2**20:.0f} MiB are free (in Docker: --shm-size={_round_up(needed)}m)"
        )


def _round_up(needed: int) -> int:
    """Returns the MiB for the batches of training, for those of an evaluation beside them, and for others."""
    return -(-2 * needed // 2**26) * 64 + 64


def _death(exit_code: int) -> str:
    head = "data.workers: a worker process"
    if exit_code == -signal.SIGBUS:
        return (
            f"{head} was killed by SIGBUS: {SHARED_MEMORY} is full; use --data.workers 0, or make {SHARED_MEMORY} "
            "larger (in Docker: --shm-size=8g)"
        )
    if exit_code == -signal.SIGKILL:
        return (
            f"{head} was killed by SIGKILL, as the kernel does where memory runs out; use fewer --data.workers or "
            "--data.threads, or a smaller --batch_size"
        )
    if exit_code < 0:
        return f"{head} was killed by {signal.Signals(-exit_code).name}; start again, or use --data.workers 0"
    return f"{head} ended with exit code {exit_code}; --data.workers 0 shows where"


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Blocks the signals that stop a run, in this thread and in the threads and processes that start from it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    # The process that removes what killed ones leave in shared memory would print a warning about it.
    if _QUIET not in sys.warnoptions:
        sys.warnoptions.append(_QUIET)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_QUIET = "ignore:resource_tracker:UserWarning"


def _begin(worker: int, workers: int) -> None:
    """Prepares a worker process, which starts with the signals blocked."""
    del worker, workers  # Grain gives both
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
