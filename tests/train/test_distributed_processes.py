"""Two processes on this machine that are one run, over JAX's coordination service and gloo."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.support.alone import call_main
from tests.support.detection import make_folder as make_detection_folder
from tests.support.models import named
from tests.support.narrow import small
from tests.support.paths import ROOT
from tests.support.runs import cache_in
from tests.support.segmentation import make_folder
from train.lock import owned
from twins_jax.config import VARIANTS, TwinsConfig

# `python -m train.main` with one more model. Its blocks, one of each kind, compile in seconds; each process must do it.
NANO = ((8, 8, 8, 8), (1, 1, 1, 1), (1, 1, 1, 1), (2, 1, 1, 1), (2, 2, 1, 1), 7)
MAIN = f"""
import sys
from tests.support import compilation, short
from train.main import main
from twins_jax import config
compilation.compile_fast()
compilation.cache_in_every_process()
short.describe_without_measuring(setattr)
config.VARIANTS["nano"] = config.TwinsConfig(*{NANO})
sys.exit(main(sys.argv[1:]))
"""
STEPS, SAVE_EVERY, TIMEOUT = 20, 4, 8
ARGUMENTS = (
    *("digits", "--model.name", "nano", "--batch_size", "16", "--eval_batch_size", "64", "--log_every_steps", "1"),
    # The rows of a batch come in another order from two processes, and drop-path draws by row.
    *("--steps", str(STEPS), "--model.drop_path_rate", "0"),
)
CACHE = "JAX_COMPILATION_CACHE_DIR"
OWNER = f"process {os.getpid()} on {socket.gethostname()}"
ROUNDING = 64 * float(np.finfo(np.float32).eps)
LOST = "error: a process of this run is missing, start all of them again: "


@dataclasses.dataclass
class Pair:
    """Two processes that were started."""

    processes: list[subprocess.Popen[str]]

    def end(self, timeout: float) -> list[tuple[int, str, str]]:
        """Exit code, stdout and stderr of each; fails if one takes longer than `timeout` seconds."""
        try:
            outputs = [process.communicate(timeout=timeout) for process in self.processes]
            outputs = [(re.sub(r"^\[Gloo\] .*\n", "", output), errors) for output, errors in outputs]
        finally:
            for process in self.processes:
                process.kill()
        return [(process.returncode, *output) for process, output in zip(self.processes, outputs, strict=True)]

    def signal_when(self, ready: Callable[[], bool], victim: int, signum: int) -> None:
        while not ready():
            assert all(process.poll() is None for process in self.processes), self.end(10)
            time.sleep(0.002)
        self.processes[victim].send_signal(signum)


def start(
    code: str, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    environment = os.environ | (environment or {})
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment, **pipes)


@pytest.fixture(scope="module", autouse=True)
def _compile_cache(compiled: Path) -> Iterator[None]:
    """Programs that one run compiles serve the later ones, each process by what the same one compiled."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cache_in(compiled).items():
            patch.setenv(name, value)
        yield


def start_pair(code: str, *arguments: str, timeout: int = TIMEOUT) -> Pair:
    flags = ["--distributed.coordinator", f"127.0.0.1:{free_port()}", "--distributed.processes", "2"]
    flags += ["--distributed.timeout_seconds", str(timeout), "--distributed.process_id"]
    folders = [{CACHE: f"{os.environ[CACHE]}-{process}-of-2"} for process in range(2)]
    return Pair([start(code, [*arguments, *flags, str(process)], folders[process]) for process in range(2)])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def lines(workdir: Path) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl without the fields that measure time."""
    path = workdir / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []
    return [{key: value for key, value in line.items() if key not in ("images_per_s", "mfu")} for line in found]


def reached(workdir: Path, step: int) -> bool:
    return any(line["step"] >= step for line in lines(workdir))


def final(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.splitlines()[-1].removeprefix("final: "))
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, str, str]]]:
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    pair = start_pair(MAIN, *ARGUMENTS, "--fsdp", "2", "--workdir", str(workdir))
    return workdir, pair.end(timeout=600)


def test_only_the_first_process_writes_and_prints(undisturbed: tuple[Path, list[tuple[int, str, str]]]) -> None:
    workdir, ((code, output, _), (other_code, other_output, _)) = undisturbed
    assert (code, other_code) == (0, 0)
    assert final(output)["examples"] == 355
    assert "final" not in other_output
    assert [(line["step"], line["split"]) for line in lines(workdir)] == [
        *((step, "train") for step in range(1, STEPS + 1)),
        (STEPS, "eval"),
    ]
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    assert json.loads((workdir / "config.json").read_text())["distributed"]["process_id"] == 0
    # All processes wrote their parts of the checkpoint.
    assert {path.name for path in (workdir / "checkpoints" / str(STEPS) / "params").glob("ocdbt.process_*")} == {
        "ocdbt.process_0",
        "ocdbt.process_1",
    }


def test_a_folder_in_use_is_refused_in_both(tmp_path: Path) -> None:
    """The first process alone asks for the lock; the other one must not wait for it."""
    with owned("workdir", tmp_path):
        ends = start_pair(MAIN, *ARGUMENTS, "--workdir", str(tmp_path)).end(timeout=60)
    for code, output, errors in ends:
        assert (code, output) == (2, "")
        assert errors.endswith(f"error: workdir: {tmp_path} is in use by {OWNER}: wait for it, or name another\n")
    assert list(tmp_path.iterdir()) == []


def test_run_goes_on_after_a_loss_and_preemption(
    undisturbed: tuple[Path, list[tuple[int, str, str]]], tmp_path: Path
) -> None:
    """Two processes go on where two were lost, bit for bit, and one goes on where two were preempted."""
    before, ((_, undisturbed_output, _), _) = undisturbed
    workdir = tmp_path / "run"
    arguments = [*ARGUMENTS, "--checkpoint.every_steps", str(SAVE_EVERY), "--workdir", str(workdir)]
    two = [*arguments, "--fsdp", "2"]

    # The one that the others find each other by; `test_process_that_fails_alone` ends the other one.
    pair = start_pair(MAIN, *two)
    pair.signal_when((workdir / "checkpoints" / "4").is_dir, 0, signal.SIGKILL)  # a save ends some steps later
    killed = time.monotonic()
    (victim_code, _, _), (code, _, errors) = pair.end(timeout=600)
    # The loss is noticed after TIMEOUT at the latest, and no process waits for anything after that.
    assert time.monotonic() - killed < TIMEOUT + 10
    assert (code, victim_code) == (4, -signal.SIGKILL), errors
    assert errors.splitlines()[-1].startswith(LOST)
    assert "Traceback" not in errors

    pair = start_pair(MAIN, *two)
    pair.signal_when(lambda: reached(workdir, 13), 1, signal.SIGTERM)
    (code, output, errors), (other_code, _, other_errors) = pair.end(timeout=600)
    assert (code, other_code) == (75, 75), errors + other_errors
    assert re.search("holds step (4|8) of", output)
    stopped = max(line["step"] for line in lines(workdir))
    for text in (errors, other_errors):
        assert f"SIGTERM: saved step {stopped} of {STEPS}" in text
    assert (workdir / "checkpoints" / str(stopped)).is_dir()
    assert lines(workdir) == lines(before)[:stopped]

    ((code, output, errors),) = Pair([start(MAIN, arguments)]).end(timeout=600)
    assert code == 0, errors
    assert f"holds step {stopped} of {STEPS}" in output
    for name in ("examples", "top1", "top5", "step"):
        assert final(output)[name] == final(undisturbed_output)[name]
    for line, expected in zip(lines(workdir), lines(before), strict=True):
        assert line.pop("split") == expected.pop("split")
        assert line == pytest.approx(expected, rel=32 * float(np.finfo(np.float32).eps))


def test_segmentation_by_two_processes_is_that_by_one(tmp_path: Path) -> None:
    """The second process has no image in the evaluation's last batch, and each has one in the training's batches."""
    data = make_folder(tmp_path / "data")
    for kind in ("images", "masks"):
        (data / kind / "val" / "5.png").unlink()  # leaves five
    arguments = ["segment_folder", "--data.dir", str(data), "--model.name", "nano", "--data.crop_size", "32"]
    arguments += ["--data.shorter", "48", "--data.longer", "96", "--data.workers", "0"]
    arguments += ["--data.eval_multiple", "96", "--eval_batch_size", "2", "--batch_size", "2", "--steps", "2"]
    arguments += ["--log_every_steps", "1"]
    found = {}
    for name, run in (("two", start_pair), ("one", lambda *arguments: Pair([start(arguments[0], arguments[1:])]))):
        (code, output, errors), *others = run(MAIN, *arguments, "--workdir", str(tmp_path / name)).end(timeout=600)
        assert code == 0, errors
        assert [other[0] for other in others] == [0] * len(others)
        found[name] = final(output), lines(tmp_path / name)
    (figures, metrics), (expected_figures, expected_metrics) = found["two"], found["one"]
    assert figures["examples"] == 5
    assert figures == pytest.approx(expected_figures, rel=1e-3)  # a pixel between two classes may change sides
    for line, expected in zip(metrics, expected_metrics, strict=True):
        assert line.pop("split") == expected.pop("split")
        assert line == pytest.approx(expected, rel=1e-3)


SMALL = "from pytest import MonkeyPatch; from tests.support.narrow import small; small(MonkeyPatch())\n"


def test_detection_by_two_processes_is_that_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RetinaNet: two processes have half of the parameters each, and learn a batch in two parts.

    A part's two images are a group of the one process's batch: the second process reads every second image, and a part
    takes every second row. The second process has no image in the evaluation's last batch.
    """
    pytest.importorskip("pycocotools", reason="needs the extra `detection`")
    data = make_detection_folder(tmp_path / "data")
    path = data / "annotations" / "val.json"
    content = json.loads(path.read_text())
    images = content["images"][:5]  # the sixth has no annotations
    path.write_text(json.dumps(content | {"images": images}))
    arguments = ["detect_folder", "--data.dir", str(data), "--model.name", "nano", "--data.shorter", "64"]
    arguments += ["--data.longer", "64", "--data.workers", "0", "--batch_size", "4", "--eval_batch_size", "2"]
    arguments += ["--steps", "1", "--optim.warmup_steps", "0", "--workdir"]
    flags = ["--fsdp", "2", "--optim.accumulate", "2"]
    program = MAIN.replace("sys.exit", SMALL + "sys.exit")
    pair = start_pair(program, *arguments, str(tmp_path / "two"), *flags, timeout=60)
    (code, output, errors), (other_code, _, other_errors) = pair.end(timeout=600)
    assert (code, other_code) == (0, 0), errors + other_errors

    monkeypatch.setitem(VARIANTS, "nano", TwinsConfig(*NANO))
    small(monkeypatch)
    code, expected_output, errors = call_main([*arguments, str(tmp_path / "one"), "--distributed.mode", "off"])
    assert code == 0, errors
    assert final(output)["examples"] == len(images)
    assert final(output)["box_ap"] > 0
    assert final(output) == pytest.approx(final(expected_output), rel=1e-6)
    for line, expected in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        assert line.pop("split") == expected.pop("split")
        assert line == pytest.approx(expected, rel=ROUNDING)
    gradients, expected_gradients = (first_gradients(tmp_path / name) for name in ("two", "one"))
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        atol = ROUNDING * np.abs(gradient).max()
        np.testing.assert_allclose(gradients[name], gradient, rtol=0, atol=atol, err_msg=name)
    assert sum(gradient.any() for gradient in gradients.values()) == 42  # all but those of the map that has no use
    answers, expected_answers = (
        sorted(json.loads((tmp_path / name / "results.bbox.json").read_text()), key=lambda answer: answer["image_id"])
        for name in ("two", "one")
    )
    assert {answer["image_id"] for answer in answers} == {image["id"] for image in images}
    for answer, expected in zip(answers, expected_answers, strict=True):
        assert answer.pop("score") == pytest.approx(expected.pop("score"), rel=1e-5)
        assert answer.pop("bbox") == pytest.approx(expected.pop("bbox"), abs=1e-3)
        assert answer == expected  # image and category


def first_gradients(workdir: Path) -> dict[str, np.ndarray]:
    """AdamW's first moments after one step, a tenth of the gradients, whatever devices wrote them."""
    folder = workdir / "checkpoints" / "1" / "opt_state"
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(folder).item_metadata.tree
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = named(checkpointer.restore(folder, item=tree, restore_args=restore_args))
    return {name: leaf for name, leaf in state.items() if "/mu/" in name}


JOIN = """
import sys
from train.distributed import initialize
from train.main import parse
initialize(parse(sys.argv[1:]).distributed)
import jax
print(jax.process_index(), jax.process_count(), jax.local_device_count())
"""


def test_slurm_is_detected() -> None:
    port = str(free_port())
    shared = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.1,other", "SLURM_NTASKS": "2"}
    shared["JAX_COORDINATOR_PORT"] = port  # instead of the one that follows from the job's number, which may be taken
    own = [{"SLURM_PROCID": str(process), "SLURM_LOCALID": str(process)} for process in range(2)]
    ended = Pair([start(JOIN, environment=shared | variables) for variables in own]).end(timeout=120)
    assert [(code, output) for code, output, _ in ended] == [(0, "0 2 1\n"), (0, "1 2 1\n")]


def test_without_a_cluster_a_process_is_the_whole_run() -> None:
    ((code, output, errors),) = Pair([start(JOIN)]).end(timeout=120)
    assert (code, output, errors) == (0, "0 1 1\n", "")


def test_processes_that_do_not_come_are_not_waited_for_long() -> None:
    flags = ["--distributed.processes", "2", "--distributed.timeout_seconds", "2"]
    alone = []
    for process in ("0", "1"):
        coordinator = f"127.0.0.1:{free_port()}"
        alone.append(
            start(JOIN, [*flags, "--distributed.coordinator", coordinator, "--distributed.process_id", process])
        )
    for code, output, errors in Pair(alone).end(timeout=120):
        assert (code, output) == (4, "")
        assert errors.splitlines()[-1].startswith(LOST)


FAIL_ALONE = """
import sys, jax, train.loop
from jax.experimental.multihost_utils import sync_global_devices
from train.distributed import initialize
from train.errors import DivergedError
from train.main import main

def run(config):
    initialize(config.distributed)
    if jax.process_index() == 1:
        raise ERROR
    sync_global_devices("with a process that has failed")

train.loop.run = run
sys.exit(main(sys.argv[1:]))
"""


def test_process_that_fails_alone() -> None:
    """It keeps its exit code, and the other does not wait for it for long."""
    kinds = {
        "DivergedError('nan')": (3, "error: nan"),
        "jax.errors.JaxRuntimeError('connection closed')": (4, f"{LOST}connection closed"),
    }
    pairs = [start_pair(FAIL_ALONE.replace("ERROR", error), timeout=3) for error in kinds]
    for pair, (code, message) in zip(pairs, kinds.values(), strict=True):
        (other_code, _, other_errors), (found, _, errors) = pair.end(timeout=120)
        assert (found, other_code) == (code, 4), errors + other_errors
        assert message in errors
        assert (LOST in errors) == (code == 4)
        assert LOST in other_errors


def test_error_of_all_processes(tmp_path: Path) -> None:
    wrong = ["--data.source", "folder", "--data.dir", str(tmp_path / "nothing"), "--workdir", str(tmp_path / "run")]
    for code, output, errors in start_pair(MAIN, *wrong).end(timeout=120):
        assert (code, output) == (2, "")
        assert any(line.startswith("error: ") and "nothing" in line for line in errors.splitlines())
        assert LOST not in errors
