"""Whole runs on digits. The ones that are killed are processes of their own; the others share this one's start-up."""

import dataclasses
import json
import math
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import train.loop
import twins_jax
from tests.support import runs, short
from tests.support.alone import STEPS, Alone, RunMain, last_line
from tests.support.classification import eval_batches
from train.benchmark.layer_costs import count
from train.checkpoint import Checkpoints
from train.config import RunConfig
from train.data.decode import decode
from train.distributed import to_global
from train.experiment import Experiment, build
from train.main import parse
from train.state import TrainState
from train.task import Batch
from twins_jax.preprocess import normalize

pytestmark = pytest.mark.usefixtures("short_variant")


def test_last_line(alone: Alone) -> None:
    names = ["top1", "top5", "loss", "examples", "ema_top1", "ema_top5", "ema_loss", "step"]
    assert list(alone.final) == names
    assert (alone.final["examples"], alone.final["step"]) == (355, STEPS)
    last = runs.metrics(alone.workdir)[-1]
    assert last == {"step": STEPS, "split": "eval"} | {name: alone.final[name] for name in names[:-1]}


def test_figures_are_those_of_the_saved_weights(alone: Alone, arguments: list[str]) -> None:
    """The evaluation again: the file by the port's reader, all examples in one batch, numpy's arithmetic."""
    (batch,) = eval_batches(parse(arguments).data, 355)
    for prefix, ema in (("", False), ("ema_", True)):
        model = twins_jax.from_pretrained(alone.workdir, ema=ema)
        assert model.class_names == tuple("0123456789")
        apply, params = twins_jax.split_model(model)
        logits = np.asarray(jax.jit(apply)(params, normalize(batch["image"])), np.float64)
        true = logits[np.arange(355), batch["label"]]
        rank = (logits > true[:, None]).sum(axis=1)
        assert alone.final[f"{prefix}top1"] == (rank == 0).sum() / 355
        assert alone.final[f"{prefix}top5"] == (rank < 5).sum() / 355
        loss = (np.log(np.exp(logits).sum(axis=1)) - true).mean()
        # The forward pass of another batch size rounds in another order.
        assert alone.final[f"{prefix}loss"] == pytest.approx(loss, rel=1e-5)


def test_what_a_run_prints_and_writes(alone: Alone) -> None:
    parameters = sum(array.size for name, array in alone.saved.items() if name.startswith("params"))
    first = alone.output.splitlines()[0]
    assert first.startswith(f"{parameters / 1e6:.1f} M parameters, ")
    assert re.search(r" \d+\.\d\d GFLOPs an image forward, 1 device\(s\) of \d+ GFLOP/s in matrix products$", first)
    assert "\r" not in alone.errors
    lines = [line for line in alone.errors.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == [f"{step}/16" for step in range(2, 17, 2)]
    numbers = r"epoch 0\.1 loss \d\.\d+ lr \d\.?\d*(e-\d+)? \d+ images/s 0s left"
    assert re.fullmatch(rf"step 16/16 {numbers}", lines[-1])
    assert re.findall(r"^step (\d+)/16 eval top1 0\.\d+ .*", alone.output, re.MULTILINE) == ["8", "16"]
    config = json.loads((alone.workdir / "config.json").read_text())
    assert (config["steps"], config["data"]["source"], config["workdir"]) == (STEPS, "digits", str(alone.workdir))
    assert sorted(path.name for path in alone.workdir.iterdir()) == [
        *("checkpoints", "config.json", "dataset.json", "metrics.jsonl", "tensorboard")
    ]
    assert json.loads((alone.workdir / "dataset.json").read_text()) == {
        "num_classes": 10,
        "class_names": list("0123456789"),
        "train_examples": 1442,
        "eval_examples": 355,
    }
    assert len(list((alone.workdir / "tensorboard").iterdir())) == 1
    assert runs.checkpoints(alone.workdir) == [4, 8, 12, 16]


def test_lines_of_metrics(alone: Alone) -> None:
    lines = [json.loads(line) for line in (alone.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["split"]) for line in lines] == [
        *((2, "train"), (4, "train"), (6, "train"), (8, "train"), (8, "eval")),
        *((10, "train"), (12, "train"), (14, "train"), (16, "train"), (16, "eval")),
    ]
    # From the sizes of the layers: the run prints two digits of XLA's count, which has some terms more.
    forward = sum(layer.count * layer.forward.flops for layer in count(short.CONFIG, 10, 1, 32, 32)) / 1e9
    peak = float(re.search(r"(\d+) GFLOP/s", alone.output)[1])  # type: ignore[index]
    for line in lines:
        if line["split"] == "train":
            assert line["epoch"] == line["step"] * 8 / 1442
            # Three forward passes an image.
            expected = 3 * forward * line["images_per_s"] / peak
            assert line["mfu"] == pytest.approx(expected, rel=0.15)


def test_killed_terminated_and_started_again(
    alone: Alone,
    arguments: list[str],
    compile_cache: Path,
    rerun: RunMain,
    tmp_path: Path,
) -> None:
    """Killed soon after the first checkpoint, then ended by SIGTERM; `soak.py` kills at many moments."""

    def is_beyond_a_checkpoint() -> bool:
        """It has written lines that the next run will write again; a save ends some steps later."""
        saved, lines = runs.checkpoints(tmp_path), runs.metrics(tmp_path)
        return bool(saved) and lines[-1]["step"] > saved[-1]

    process = runs.start([*arguments, "--workdir", str(tmp_path)], compile_cache, short.COMMAND)
    runs.signal_when(process, signal.SIGKILL, is_beyond_a_checkpoint)
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    def goes_on() -> bool:
        """It has dropped the lines after its checkpoint, and begun event files of its own."""
        return len(list((tmp_path / "tensorboard").iterdir())) == 2 and len(runs.metrics(tmp_path)) >= 3

    process = runs.start([*arguments, "--workdir", str(tmp_path)], compile_cache, short.COMMAND)
    runs.signal_when(process, signal.SIGTERM, goes_on)
    output, errors = process.communicate()
    assert process.returncode == 75, errors
    assert re.search(rf"{tmp_path} holds step (4|8|12) of 16: going on from there", output)
    (line,) = [line for line in errors.splitlines() if line.startswith("SIGTERM: ")]
    step = int(re.search(r"saved step (\d+) of 16 in ", line)[1])  # type: ignore[index]
    assert runs.checkpoints(tmp_path)[-1] == step < STEPS

    code, output, _ = rerun(tmp_path)
    assert code == 0
    assert f"{tmp_path} holds step {step} of 16: going on from there" in output
    assert last_line(output) == alone.final
    # It wrote a line when it stopped, which the other did not; evaluations and weights are the same.
    alone.assert_same_end(tmp_path, metrics=False)
    lines = [
        [x for x in runs.metrics(workdir) if x["split"] == "eval" or x["step"] < step]
        for workdir in (tmp_path, alone.workdir)
    ]
    assert lines[0] == lines[1]
    steps = [[x["step"] for x in runs.metrics(workdir)] for workdir in (tmp_path, alone.workdir)]
    assert steps[0] == sorted([*steps[1], *{step}.difference(steps[1])])
    assert set(runs.checkpoints(tmp_path)) == {4, 8, 12, 16, step}
    assert all(path.name.isdigit() for path in (tmp_path / "checkpoints").iterdir())


def test_terminated_during_compilation(rerun: RunMain, tmp_path: Path) -> None:
    def build_until_sigterm(config: RunConfig) -> Experiment:
        signal.raise_signal(signal.SIGTERM)
        return build(config)

    code, output, errors = rerun(tmp_path, build=build_until_sigterm)
    assert (code, runs.checkpoints(tmp_path)) == (75, [1])
    assert "SIGTERM: saved step 1 of 16" in errors
    assert "final:" not in output
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_rerun_of_a_finished_run_only_evaluates(alone: Alone, rerun: RunMain, tmp_path: Path) -> None:
    workdir = alone.copy_until(STEPS, tmp_path / "run")
    code, output, _ = rerun(workdir)
    assert code == 0
    assert last_line(output) == alone.final
    alone.assert_same_end(workdir)


def test_a_report_that_fails_does_not_hide_the_result(alone: Alone, rerun: RunMain, tmp_path: Path) -> None:
    workdir = alone.copy_until(STEPS, tmp_path / "run")
    (workdir / "report").write_text("in the place of the folder")
    code, output, errors = rerun(workdir, "--report")
    assert (code, last_line(output)) == (1, alone.final)
    assert re.search(rf"^error: report: .*{workdir}/report", errors, re.MULTILINE)


@pytest.mark.parametrize("moment", ["save", "wait"])
def test_a_last_save_that_fails_does_not_hide_the_result(
    moment: str, alone: Alone, rerun: RunMain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: Any) -> None:
        raise twins_jax.InputError("checkpoints: could not be written: No space left on device")

    workdir = alone.copy_until(12, tmp_path / "run")
    monkeypatch.setattr(Checkpoints, moment, full)
    code, output, errors = rerun(workdir)
    assert (code, last_line(output)) == (1, alone.final)
    assert "error: checkpoints: could not be written: No space left on device\n" in errors


def test_rerun_goes_on_and_profiles(alone: Alone, rerun: RunMain, tmp_path: Path) -> None:
    workdir = alone.copy_until(8, tmp_path / "run")
    code, output, _ = rerun(workdir, "--profile")
    assert code == 0
    assert f"{workdir} holds step 8 of 16: going on from there" in output
    alone.assert_same_end(workdir)
    # The run ends before the last step that is to be traced.
    (trace,) = workdir.glob("profile/plugins/profile/*/*.xplane.pb")
    assert trace.stat().st_size > 10_000


def test_damaged_newest_checkpoint(alone: Alone, rerun: RunMain, tmp_path: Path) -> None:
    workdir = alone.copy_until(12, tmp_path / "run")
    files = [path for path in (workdir / "checkpoints" / "12" / "opt_state").rglob("*") if path.is_file()]
    values = max(files, key=lambda path: path.stat().st_size)
    values.write_bytes(values.read_bytes()[: values.stat().st_size // 2])
    with pytest.warns(UserWarning, match=r"the checkpoint of step 12 cannot be read .* moved to .*/damaged/12"):
        code, output, _ = rerun(workdir)
    assert code == 0
    assert f"{workdir} holds step 8 of 16" in output
    alone.assert_same_end(workdir)


def test_a_longer_run_says_so(alone: Alone, rerun: RunMain, tmp_path: Path) -> None:
    workdir = alone.copy_until(STEPS, tmp_path / "run")
    code, output, _ = rerun(workdir, "--steps", str(STEPS + 1))
    assert code == 0
    assert f"from step {STEPS} on: steps is {STEPS + 1}, the run has {STEPS}\n" in output


def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(
    alone: Alone, rerun: RunMain, tmp_path: Path
) -> None:
    workdir = alone.copy_until(8, tmp_path / "run")

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
        """As the rate of step 9 would, it makes the weights so large that the loss of step 10 overflows."""
        assert alone.built.train_step is not None
        state, metrics = alone.built.train_step(state, batch)
        params = jax.tree.map(lambda leaf: jax.device_put(1e30 * leaf, leaf.sharding), state.params)
        return dataclasses.replace(state, params=params), metrics

    def built(config: RunConfig) -> Experiment:
        return dataclasses.replace(alone.built, config=config, train_step=step)

    flags = ("--optim.learning_rate", "1e30", "--optim.warmup_epochs", "0", "--allow_changes")
    code, output, errors = rerun(workdir, *flags, build=built)
    assert (code, "final:" in output) == (3, False)
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert re.match(r"error: step 10: .*loss (nan|inf)", line)
    for advice in (
        "last checkpoint is good",
        "--allow_changes",
        "optim.learning_rate",
        "optim.clip_norm",
        "model.dtype float32",
    ):
        assert advice in line
    assert runs.checkpoints(workdir) == [4, 8]
    assert runs.differences(runs.saved(workdir, 8), runs.saved(alone.workdir, 8)) == []
    # The advice followed, the run ends as if nothing had happened.
    assert rerun(workdir, "--allow_changes")[0] == 0
    alone.assert_same_end(workdir)
    changes = [json.loads(line) for line in (workdir / "config_changes.jsonl").read_text().splitlines()]
    assert [(line["step"], line["changes"]["optim.learning_rate"]) for line in changes] == [
        *((8, [0.008, 1e30]), (8, [1e30, 0.008]))
    ]


def test_an_evaluation_that_is_not_finite_stops_the_run(
    alone: Alone,
    rerun: RunMain,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    workdir = alone.copy_until(12, tmp_path / "run")
    evaluated = {"top1": 0.1, "top5": 0.5, "loss": math.nan, "examples": 355}
    monkeypatch.setattr(train.loop, "evaluate", lambda *_: evaluated)
    code, _, errors = rerun(workdir)
    assert code == 3
    assert "error: step 16: top1 0.1, top5 0.5, loss nan" in errors
    assert runs.checkpoints(workdir) == [4, 8, 12]
    assert all(math.isfinite(x) for line in runs.metrics(workdir) for x in line.values() if isinstance(x, float))


def test_an_image_that_cannot_be_read_stops_training(
    alone: Alone, rerun: RunMain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreadable(data: bytes, name: str) -> np.ndarray:
        raise twins_jax.InputError(f"{name}: not a readable image: {len(data)} bytes")

    monkeypatch.setattr("train.tasks.classification.transforms.decode", unreadable)
    code, _, errors = rerun(alone.copy_until(4, tmp_path / "run"))
    assert code == 2
    assert re.search(r"^error: digits train\[\d+\]: not a readable image: \d+ bytes$", errors, re.MULTILINE)
    assert "Traceback" not in errors


@pytest.mark.filterwarnings("ignore:.*skipped")
def test_damaged_images_are_skipped_and_counted(
    alone: Alone, rerun: RunMain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def some_unreadable(data: bytes, name: str) -> np.ndarray:
        if name.endswith("7]"):
            raise twins_jax.InputError(f"{name}: not a readable image")
        return decode(data, name)

    def built(config: RunConfig) -> Experiment:
        return dataclasses.replace(alone.built, config=config, task=config.make_task())

    monkeypatch.setattr("train.tasks.classification.transforms.decode", some_unreadable)
    options = "--data.on_error", "skip", "--data.max_errors", "0.11"
    first = alone.copy_until(8, tmp_path / "first")
    code, output, errors = rerun(first, *options, build=built)
    assert code == 0, errors
    unreadable = sum(str(index).endswith("7") for index in range(355))
    assert (last_line(output)["examples"], last_line(output)["skipped"]) == (355 - unreadable, unreadable)
    counts = [line["skipped"] for line in runs.metrics(first) if line["split"] == "train" and line["step"] > 8]
    assert len(counts) == 4
    assert 0 < sum(counts) < 20  # of 64

    again = tmp_path / "again"
    shutil.copytree(first, again)
    shutil.rmtree(again / "checkpoints" / str(STEPS))
    code, _, errors = rerun(again, *options, build=built)
    assert code == 0, errors
    assert runs.differences(runs.saved(first, STEPS), runs.saved(again, STEPS)) == []
    assert runs.metrics(again) == runs.metrics(first)


def test_compiled_step_donates_its_state_and_nothing_else(alone: Alone, tmp_path: Path) -> None:
    workdir, config = alone.copy_until(4, tmp_path / "run"), alone.built.config
    data = iter(alone.built.task.batches("train", config.batch_size))
    with Checkpoints(workdir, config.checkpoint, "top1") as checkpoints:
        state = checkpoints.restore(alone.built.state, data)
    assert state is not None
    assert alone.built.train_step is not None
    before, shardings = jax.tree.leaves(state), jax.tree.map(lambda leaf: leaf.sharding, state)
    batch = to_global(next(data), alone.built.mesh)
    after, metrics = alone.built.train_step(state, batch)
    assert all(leaf.is_deleted() for leaf in before)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((batch, after, metrics)))
    assert jax.tree.map(lambda leaf: leaf.sharding, after) == shardings


def test_initial_weights_are_those_of_the_seed(arguments: list[str], compile_cache: Path) -> None:
    del compile_cache  # in use from now on
    seven, eight = (
        twins_jax.get_params(parse([*arguments, "--seed", seed]).make_task().create_model(nnx.Rngs(int(seed))))
        for seed in "78"
    )
    expected = twins_jax.get_params(twins_jax.create_model(short.NAME, num_classes=10, rngs=nnx.Rngs(7)))
    assert all(map(np.array_equal, jax.tree.leaves(seven), jax.tree.leaves(expected)))
    assert not np.array_equal(seven["head"]["kernel"], eight["head"]["kernel"])
