"""Several processes as one run, on JAX's own distributed runtime."""

import ctypes
import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
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
    """A request to stop by SIGTERM, which schedulers send before they take a machine away.

    A context manager. With several processes JAX's preemption service listens for the signal and makes them agree on a
    step; alone, this does.
    """

    def __init__(self) -> None:
        self._received = False

    def requested(self, step: int) -> bool:
        """True if the run stops after this step: the same in all processes, which must all ask after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

    def __enter__(self) -> "StopRequest":
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - signal gives both
        self._received = True
