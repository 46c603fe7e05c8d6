"""The command that compiles for TPU. Tests that need libtpu are skipped without it."""

import dataclasses
import json
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from flax import nnx

import train.benchmark.aot
import train.benchmark.tpu
import twins_jax.config
from tests.support.models import SVT, classifier
from train.benchmark.aot import EXIT_DOES_NOT_FIT, compile_step, main
from train.config import ModelConfig, RunConfig
from train.experiment import lower_train_step
from train.optim import make_optimizer, make_schedule
from train.recipes import digits
from train.state import abstract_state, create_state
from train.step import make_train_step
from train.task import DatasetInfo
from twins_jax import get_params
from twins_jax.sharding import make_mesh

needs_libtpu = pytest.mark.skipif(util.find_spec("libtpu") is None, reason="libtpu is not installed (the extra `tpu`)")
OUT_OF_MEMORY = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (80.12G) exceeds "
    "available HBM (15.75G)."
)


@pytest.fixture(autouse=True)
def _setting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(twins_jax.config.VARIANTS, "narrow", SVT)
    with jax.numpy_dtype_promotion("standard"):  # Optax's schedules divide an integer step by a float
        yield


def config(**changes: Any) -> RunConfig:
    base = digits()
    mix = dataclasses.replace(base.mix, mixup_alpha=0.8, cutmix_alpha=1.0, erase_probability=0.5)
    return dataclasses.replace(base, model=ModelConfig(name="narrow"), mix=mix, batch_size=32, **changes)


def parameters() -> list[jax.Array]:
    return jax.tree.leaves(get_params(nnx.eval_shape(lambda: classifier(SVT))))


def test_program_is_that_of_training() -> None:
    """Shapes alone give the same program as the state of a run."""
    run, mesh = config(), make_mesh()
    task, model = run.make_task(DatasetInfo(10, tuple("0123456789"), 1442, 355)), classifier(SVT)
    optimizer = make_optimizer(run, make_schedule(run, 1442))
    step = make_train_step(task, nnx.graphdef(model), optimizer, run)
    abstract = abstract_state(get_params(model), {}, optimizer, mesh, ema=False)
    from_shapes = lower_train_step(step, abstract, task, run, mesh).as_text()
    state = create_state(get_params(model), {}, optimizer, mesh, ema=False)
    assert from_shapes == lower_train_step(step, state, task, run, mesh).as_text()
    assert "tf.aliasing_output" in from_shapes or "jax.buffer_donor" in from_shapes


@needs_libtpu
def test_data_parallel_step_reduces_the_gradients_once() -> None:
    report = compile_step(config(), "v5e:2x2", classes=10)
    assert report.fits
    assert report.mesh == {"data": 4, "fsdp": 1}
    assert report.images == 8
    assert report.traffic is not None
    assert report.flops is not None
    gradients = sum(4 * leaf.size for leaf in parameters())
    state_and_batch = 3 * gradients + 8 * (32 * 32 * 3 + 4)
    assert state_and_batch <= report.memory["arguments"] < 3 * state_and_batch  # padding of arrays this small
    assert report.memory["aliased"] >= 3 * gradients  # the next state takes the place of the state
    reduced = report.traffic.kinds["all-reduce"]
    assert reduced.payload_bytes == pytest.approx(gradients, rel=0.02)
    assert reduced.sent_bytes == pytest.approx(1.5 * reduced.payload_bytes)
    assert report.traffic.in_open_loops == 0
    assert report.seconds()["interconnect"] == pytest.approx(report.traffic.total.sent_bytes / 200e9)
    for counted, needed in ((0.5, 1), (2, 2)):  # the compiler counts the bodies of loops once
        seconds = dataclasses.replace(report, flops=counted * report.model_flops).seconds()
        assert seconds["compute"] == pytest.approx(needed * report.model_flops / 197e12)


@needs_libtpu
def test_split_parameters_in_two_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "report.json"
    arguments = ["--model.name", "narrow", "--batch_size", "32", "--optim.accumulate", "2", "--fsdp", "4"]
    arguments += ["--topology", "v5e:2x2", "--classes", "10", "--by_layer", "--out", str(out)]
    assert main(["digits", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "fits: MiB a chip of 16 GiB: arguments" in printed
    assert "HBM GB by part" in printed
    report = json.loads(out.read_text())
    assert report["mesh"] == {"data": 1, "fsdp": 4}
    assert report["config"]["optim"]["accumulate"] == 2
    split = sum(4 * leaf.size for leaf in parameters() if leaf.ndim > 1 and leaf.shape[-1] > 3)
    gathered = report["traffic"]["kinds"]["all-gather"]
    assert gathered["payload_bytes"] >= split  # every kernel at least once
    assert {"patch", "norms", "projections", "LSA", "GSA", "MLP", "PEG", "AdamW"} <= set(report["layers"])
    assert report["traffic"]["in_open_loops"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "error: recipe='nothing': must be one of digits"),
        (
            ["--topology", "v5e:2x2", "--fsdp", "3"],
            "error: fsdp=3: must be a divisor of the number of devices, 4",
        ),
        (["--batch_size", "30"], "error: batch_size=30: must be a multiple of 4 (devices x optim.accumulate)"),
        (
            ["--model.attention_implementation", "pallas"],
            "error: model.attention_implementation='pallas': must be auto or xla, for TPUs",
        ),
        (["--classes", "0"], "error: classes=0: must be an integer from 1"),
        (["--topology", "v5e:3x3"], "error: topology='v5e:3x3': INVALID_ARGUMENT: Topology layout"),
        (["--topology", "elsewhere"], "error: topology='elsewhere': INVALID_ARGUMENT: Your TPU topology name"),
        (["--topology", "v4:2x2x1"], "error: topology='v4:2x2x1': must be a slice of v5e, v5p, v6e"),
        (["finetune_folder", "--data.dir", "nowhere"], "error: "),
    ],
)
@needs_libtpu
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_without_libtpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(train.benchmark.tpu.util, "find_spec", lambda name: None)  # noqa: ARG005
    assert main([]) == 2
    assert capsys.readouterr().err == "error: topology: compiling for TPU needs libtpu; install it (the extra `tpu`)\n"


def test_program_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Lowered:
        def compile(self) -> None:
            raise jax.errors.JaxRuntimeError(OUT_OF_MEMORY)

    chip = train.benchmark.tpu.CHIPS["TPU v5 lite"]
    monkeypatch.setattr(train.benchmark.aot, "topology_devices", lambda name: (chip, jax.devices()))  # noqa: ARG005
    monkeypatch.setattr(train.benchmark.aot, "lower_train_step", lambda *_: Lowered())
    arguments = ["--model.name", "narrow", "--classes", "10", "--out"]
    assert main([*arguments, str(tmp_path / "report.json")]) == EXIT_DOES_NOT_FIT
    captured = capsys.readouterr()
    verdict = OUT_OF_MEMORY.partition(": ")[2]
    assert captured.out.splitlines()[1] == f"does not fit: {verdict} (HBM 16 GiB)"
    assert not captured.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["fits"], report["verdict"], report["memory"]) == (False, verdict, {})


def test_bytes_by_layer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A program of one instruction, of no known part: its bytes, beside the floors of the model's parts."""

    class Program:
        def compile(self) -> "Program":
            return self

        def as_text(self) -> str:
            instructions = "  %x = f32[8,128]{1,0} parameter(0)\n  ROOT %y = f32[8,128]{1,0} negate(%x)\n"
            return f"HloModule jit_f\n\nENTRY %main (x: f32[8,128]) -> f32[8,128] {{\n{instructions}}}\n"

        def memory_analysis(self) -> SimpleNamespace:
            kinds = ("argument", "output", "alias", "temp", "generated_code")
            return SimpleNamespace(peak_memory_in_bytes=0, **{f"{kind}_size_in_bytes": 0 for kind in kinds})

        def cost_analysis(self) -> dict[str, float]:
            return {"flops": 1e9, "bytes accessed": 8e9}

    chip = train.benchmark.tpu.CHIPS["TPU v5 lite"]
    monkeypatch.setattr(train.benchmark.aot, "topology_devices", lambda name: (chip, jax.devices()))  # noqa: ARG005
    monkeypatch.setattr(train.benchmark.aot, "lower_train_step", lambda *_: Program())
    out = tmp_path / "report.json"
    assert main(["--model.name", "narrow", "--classes", "10", "--by_layer", "--out", str(out)]) == 0
    assert "by the compiler's, which include on-chip memory: 8.000 GB" in capsys.readouterr().out
    layers = json.loads(out.read_text())["layers"]
    assert layers["other"] == dict.fromkeys(layers["other"], 0) | {"forward_read": 4096, "forward_written": 4096}
    assert all(layers[part]["floor"] > 0 for part in ("patch", "norms", "projections", "LSA", "GSA", "MLP", "PEG"))
