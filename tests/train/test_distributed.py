import dataclasses
import os
import queue
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils

from tests.support.classification import eval_batches, train_batches
from train.checkpoint import Checkpoints
from train.config import CheckpointConfig, DistributedConfig
from train.distributed import StopRequest, lost_connection
from train.state import create_state
from train.tasks.classification.config import ClassificationDataConfig
from twins_jax import InputError
from twins_jax.sharding import make_mesh

BATCH = 96


@pytest.fixture
def config() -> ClassificationDataConfig:
    return ClassificationDataConfig(image_size=32, rand_augment_layers=2, threads=2)


def copies(batches: Any, count: int) -> list[dict[str, np.ndarray]]:
    iterator = iter(batches)
    return [jax.tree.map(np.array, next(iterator)) for _ in range(count)]


@pytest.mark.parametrize("shards", [2, 3])
@pytest.mark.parametrize("repeated", [1, 3])
def test_shards_deal_out_the_rows_of_each_batch(config: ClassificationDataConfig, shards: int, repeated: int) -> None:
    """The k-th batches of all processes are that of one process, augmentations and all."""
    config = dataclasses.replace(config, repeated_augmentation=repeated)
    count = 18  # beyond the end of an epoch, which no batch ends at: 1,442 examples
    whole = copies(train_batches(config, BATCH, seed=3), count)
    parts = [
        copies(train_batches(config, BATCH // shards, seed=3, shard=shard, shards=shards), count)
        for shard in range(shards)
    ]
    for k, batch in enumerate(whole):
        for key, value in batch.items():
            for shard in range(shards):
                np.testing.assert_array_equal(parts[shard][k][key], value[shard::shards])


@pytest.mark.parametrize("shards", [2, 3, 8])
def test_shards_of_the_evaluation_hold_each_example_once(config: ClassificationDataConfig, shards: int) -> None:
    (whole,) = eval_batches(config, 355)
    found = np.zeros_like(whole["image"])
    for shard in range(shards):
        batches = list(eval_batches(config, 32, shard=shard, shards=shards))
        rows = np.concatenate([batch["image"][batch["mask"]] for batch in batches])
        assert len(rows) == len(range(shard, 355, shards))
        found[shard::shards] = rows
    np.testing.assert_array_equal(found, whole["image"])


def test_saving_does_not_ask_whether_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX takes the step asked about for that of this process: Orbax would ask about an old one at a save's end."""
    asked: list[int] = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    state = create_state({"kernel": jnp.zeros((8, 8))}, {}, optax.adam(1e-3), make_mesh(), ema=False)
    data = iter(grain.MapDataset.range(9).to_iter_dataset())
    with Checkpoints(tmp_path, CheckpointConfig(every_steps=1), "top1") as checkpoints:
        for step in (1, 2):
            assert checkpoints.is_due(step)
            checkpoints.save(state, step, data, None)
    assert not asked


@pytest.mark.parametrize("coordinator", ["host", "host:", "host:port", ":99", "host:0", "host:65536", "a b:99"])
def test_coordinator_without_host_or_port(coordinator: str) -> None:
    with pytest.raises(InputError, match=rf"^distributed.coordinator='{coordinator}': must be HOST:PORT"):
        DistributedConfig(coordinator=coordinator, processes=2)


def wait_for(stop: StopRequest) -> None:
    end = time.monotonic() + 10
    while not stop.requested(1) and time.monotonic() < end:
        time.sleep(0.001)
    assert stop.requested(1)


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture
def default_hangup() -> Iterator[None]:
    """Lets SIGHUP arrive in tests under nohup, which ignores it."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, previous)


@pytest.mark.usefixtures("default_hangup")
@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_asks_to_stop(signum: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest() as stop:
        assert not stop.requested(1)
        os.kill(os.getpid(), signum)
        wait_for(stop)
        os.kill(os.getpid(), signal.SIGTERM)  # schedulers repeat it
    assert stop.signum == signum
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert ("SIGINT: the run saves and stops after this step" in capfd.readouterr().err) == (signum == signal.SIGINT)


@pytest.mark.usefixtures("default_hangup")
@pytest.mark.parametrize("first", SIGNALS)
def test_ctrl_c_after_a_signal_ends_at_once(first: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: queue.Queue[int] = queue.Queue()
    monkeypatch.setattr(os, "_exit", codes.put)
    with StopRequest() as stop:
        os.kill(os.getpid(), first)
        wait_for(stop)
        os.kill(os.getpid(), signal.SIGINT)
        assert codes.get(timeout=10) == 130


def test_a_signal_that_is_ignored_stays_so() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert not stop.requested(1)
    finally:
        signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (jax.errors.JaxRuntimeError("UNKNOWN: connection closed by peer"), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), False),
        (ValueError("Gloo all-reduce failed"), True),
        (ValueError("another"), False),
    ],
)
def test_errors_that_a_lost_process_causes(error: Exception, is_lost: bool) -> None:
    assert lost_connection(error) == is_lost


def test_a_run_in_a_thread_leaves_signals_alone() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]

    def run() -> list[Any]:
        with StopRequest():
            return [signal.getsignal(number) for number in SIGNALS]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run).result() == before
