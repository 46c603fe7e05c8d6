"""Several processes as one run, on JAX's own distributed runtime."""

import signal
from types import FrameType, TracebackType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from train.config import DistributedConfig
from train.step import Batch
from twins_jax.errors import InputError
from twins_jax.sharding import batch_sharding


def initialize(config: DistributedConfig) -> None:
    """Joins the other processes of the run; must come before any other use of JAX.

    With a coordinator in the config that one is used. Otherwise JAX looks for a cluster it knows (SLURM, Open MPI,
    TPU pods, Kubernetes), and where there is none this process is the whole run.

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
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=config.timeout_seconds,
            heartbeat_timeout_seconds=config.timeout_seconds,
        )
    except ValueError:
        if config.coordinator:
            raise
        # JAX's way of saying that no cluster was found.
    except RuntimeError as error:
        raise InputError(f"distributed: the processes did not find each other: {str(error).splitlines()[0]}") from error


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes metrics."""
    return jax.process_index() == 0


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> Batch:
    """A batch over all devices of all processes, from this process's rows [B / processes, ...] of it."""
    sharding = batch_sharding(mesh)
    return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()}


class StopRequest:
    """Whether the run was asked to stop by SIGTERM, as schedulers do before they take a machine away.

    A context manager. With several processes JAX's preemption service listens for the signal and makes them agree on a
    step; alone, this does.
    """

    def __init__(self) -> None:
        self._received = False

    def requested(self, step: int) -> bool:
        """Whether to stop after this step; the same in all processes, which must all ask after every step."""
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
