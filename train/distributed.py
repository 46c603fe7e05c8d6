"""Several processes as one run, on JAX's own distributed runtime."""

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from twins_jax.errors import InputError, one_line
from twins_jax.sharding import batch_sharding

from .config import DistributedConfig

EXIT_LOST_PROCESS = 4


def initialize(config: DistributedConfig) -> None:
    """Joins the other processes of the run; must come before any other use of JAX.

    A coordinator in the config is used if given. Otherwise JAX looks for a cluster it knows (SLURM, Open MPI, TPU pods,
    Kubernetes). Without a cluster this process is the whole run.

    Raises:
        InputError: the processes did not find each other.
    """
    if config.mode == "off":
        return
    arguments: dict[str, Any] = {}
    if config.coordinator:
        arguments = {
            "coordinator_address": config.coordinator,
            "num_processes": config.processes,
            "process_id": config.process_id,
        }
    previous = _set_signal_handler(signal.SIGABRT, _on_abort)  # JAX also aborts where it waits for others in vain
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=config.timeout_seconds,
            heartbeat_timeout_seconds=config.timeout_seconds,
            shutdown_timeout_seconds=config.timeout_seconds,
        )
    except (ValueError, RuntimeError) as error:
        _set_signal_handler(signal.SIGABRT, previous)
        if str(error) == "coordinator_address should be defined.":
            return  # JAX found no cluster
        raise InputError(f"distributed: {one_line(error)}") from error
    if jax.process_count() > 1:
        # The first collective connects the processes, on CPU within 30 s. Compiling may keep one of them longer than
        # the others by more than that: they connect before.
        multihost_utils.sync_global_devices("initialize")


def lost_connection(error: Exception) -> bool:
    """True for an error that a collective whose other side is gone can raise."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" not in str(error)
    return isinstance(error, ValueError) and "Gloo" in str(error)  # as JAX raises them where it does not run ahead


def exit_lost_process(reason: str) -> NoReturn:
    """Ends this process at once because another one of the run is gone: an orderly exit would wait for it."""
    os.write(2, f"error: a process of this run is missing, start all of them again: {reason}\n".encode())
    os._exit(EXIT_LOST_PROCESS)


def expect_exit(code: int) -> None:
    """Sets the code of an exit for which the other processes do not join this one, as when it alone has failed."""
    global _expected_exit
    _expected_exit = code


_expected_exit: int | None = None

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
_set_signal_handler = ctypes.pythonapi.PyOS_setsig
_set_signal_handler.restype, _set_signal_handler.argtypes = _Handler, [ctypes.c_int, _Handler]


# JAX aborts this process when it misses another one, from a thread of its own and whatever the other threads do,
# blocked in a collective or not. A handler of Python's would run too late; C calls this one in that thread.
@_Handler
def _on_abort(signum: int) -> None:  # noqa: ARG001 - C gives it
    if _expected_exit is not None:
        os._exit(_expected_exit)
    exit_lost_process("JAX has aborted this one, see above")


def is_main_process() -> bool:
    """True in the one process that prints and writes metrics."""
    return jax.process_index() == 0


def on_main_process(check: Callable[[], object]) -> None:
    """Calls a function in the main process alone; an InputError that it raises there is raised in every process.

    All processes must call this, and wait for the main one.
    """
    error: InputError | None = None
    if is_main_process():
        try:
            check()
        except InputError as caught:
            error = caught
    if jax.process_count() > 1:
        message = np.zeros(_MAX_MESSAGE, np.uint8)
        text = str(error or "").encode(errors="replace")[:_MAX_MESSAGE]
        message[: len(text)] = np.frombuffer(text, np.uint8)
        text = bytes(multihost_utils.broadcast_one_to_all(message)).rstrip(b"\0")
        error = error or (InputError(text.decode(errors="replace")) if text else None)
    if error:
        raise error


_MAX_MESSAGE = 8192
"""Bytes of an error that reach the other processes."""


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes a batch over all devices of all processes, from this process's rows [B / processes, ...] of it."""
    sharding = batch_sharding(mesh)
    return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()}


def sum_over_processes(count: int) -> int:
    """Adds up each process's count; all processes must call it."""
    if jax.process_count() == 1:
        return count
    return int(multihost_utils.process_allgather(np.int32(count)).sum())


class StopRequest:
    """A request to stop: SIGTERM of a scheduler, SIGINT of Ctrl-C, SIGHUP of a terminal that is closed.

    A context manager. A SIGINT after the first signal ends the process at once. With several processes JAX's preemption
    service listens for SIGTERM, makes them agree on a step, and is told of the other signals; alone, this does.

    Attributes:
        signum: the signal that this process received, or SIGTERM.
    """

    def __init__(self) -> None:
        self.signum = signal.SIGTERM
        self._received = False
        self._agreed = jax.process_count() > 1  # by JAX's service
        self._previous: dict[signal.Signals, Any] = {}
        self._reader: threading.Thread | None = None

    def requested(self, step: int) -> bool:
        """True if the run stops after this step: the same in all processes, which must all ask after every step."""
        if self._agreed:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is not threading.main_thread():
            return self  # of a larger program, whose signals are its own
        # A thread reads the signals' numbers: Python's handlers wait for the main thread, which may compile long.
        self._numbers, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._previous_wake = signal.set_wakeup_fd(self._wake)
        for signum in (signal.SIGINT, signal.SIGHUP) if self._agreed else _STOP_SIGNALS:
            if signal.getsignal(signum) is not signal.SIG_IGN:  # as under nohup
                self._previous[signum] = signal.signal(signum, lambda *_: None)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._reader:
            return
        for signum, previous in self._previous.items():
            signal.signal(signum, previous)
        signal.set_wakeup_fd(self._previous_wake)
        os.close(self._wake)
        self._reader.join()
        os.close(self._numbers)

    def _read(self) -> None:
        while number := os.read(self._numbers, 1):
            if (signum := signal.Signals(number[0])) in self._previous:
                self._receive(signum)

    def _receive(self, signum: signal.Signals) -> None:
        if self._received:
            if signum == signal.SIGINT:
                os._exit(128 + signum)
            return
        self.signum, self._received = signum, True
        if signum == signal.SIGINT:
            with contextlib.suppress(OSError):
                os.write(2, b"\nSIGINT: the run saves and stops after this step; a second one stops it at once\n")
        if self._agreed:
            os.kill(os.getpid(), signal.SIGTERM)


_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
