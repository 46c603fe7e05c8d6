import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest

import train.benchmark.speed
import train.huge_pages
from tests.support.compilation import ENVIRONMENT, fast_compilation
from tests.support.models import NANO
from tests.support.runs import cache_in
from train.benchmark.backends import AUXILIARY_WEIGHT, OURS, Case
from train.benchmark.programs import make_program
from train.huge_pages import TUNABLE, VARIABLE
from twins_jax.config import VARIANTS

CASE = Case("twins_svt_tiny", "infer", 2, 32, "float32", "cpu")


@pytest.fixture(autouse=True)
def _fast_compilation(monkeypatch: pytest.MonkeyPatch, compiled: Path) -> None:
    """No figure is compared with another here."""
    for name, value in (ENVIRONMENT | cache_in(compiled)).items():
        monkeypatch.setenv(name, value)


def run(*arguments: str) -> int:
    return train.benchmark.speed.main(["--rounds", "2", "--seconds", "0.01", *arguments])


def test_our_side_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.huge_pages, "OFFERED", tmp_path / "enabled")
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "enabled").write_text("always [madvise] never")
    out = tmp_path / "new" / "figures.json"
    assert run("--variants", "twins_svt_tiny", "--mode", "infer", "train", "--size", "32", "--out", str(out)) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    infer, step = json.loads(out.read_text())["results"]
    assert (infer["case"]["mode"], step["case"]["mode"]) == ("infer", "train")
    for figures in (infer["sides"][OURS], step["sides"][OURS]):
        assert len(figures["rounds"]) == 2
        assert 0 < figures["seconds"][1] < 10
        assert figures["peak_bytes"] > 2**20
        assert 0 < figures["dispatch_seconds"] < 1
        assert 0 < figures["share_of_matmul_rate"] < 1.5
    assert step["sides"][OURS]["flops"] > 2.5 * infer["sides"][OURS]["flops"]
    # Training asks for huge pages, inference does not.
    assert step["sides"][OURS]["glibc_tunables"] == f"{TUNABLE}=1"
    assert infer["sides"][OURS]["glibc_tunables"] == ""


def test_beside_timm(timm: ModuleType, tmp_path: Path) -> None:
    del timm
    out = tmp_path / "figures.json"
    more = ("--variants", "twins_svt_small", "--batch", "1", "--size", "32", "--against", "timm")
    assert run(*more, "--against_modes", "timm eager", "--out", str(out)) == 0
    for result in json.loads(out.read_text())["results"]:
        assert result["best_other"] == "timm eager"
        pairs = zip(result["sides"]["timm eager"]["rounds"], result["sides"][OURS]["rounds"], strict=True)
        assert result["ratio"][1] == pytest.approx(sum(theirs / own for theirs, own in pairs) / 2)


def test_segmenters(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    assert run("--variants", "twins_svt_tiny", "--size", "32", "--head", "semantic_fpn", "--out", str(out)) == 0
    (result,) = json.loads(out.read_text())["results"]
    assert result["case"]["head"] == "semantic_fpn"
    # Its convolutions count: the classifier alone has 150 * 128 multiplications at each of 8x8 positions of 8 images.
    assert result["sides"][OURS]["flops"] > 2 * 8 * 64 * 150 * 128


def test_programs_train_every_array_of_a_segmenter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "nano", NANO)
    with (
        fast_compilation(),
        jax.numpy_dtype_promotion("standard"),  # optax raises floats to its int32 count
    ):
        program = make_program(dataclasses.replace(CASE, variant="nano", mode="train", head="upernet", size=64))
        params, statistics, _ = jax.tree.map(np.array, program.state)
        (new_params, new_statistics, _), loss = program.function(program.state, *program.inputs)
    # Of random logits near 0 of 150 classes, with the auxiliary head's.
    assert float(loss) == pytest.approx((1 + AUXILIARY_WEIGHT) * np.log(150), rel=0.1)
    moved = jax.tree.map(lambda old, new: bool((old != new).any()), (params, statistics), (new_params, new_statistics))
    assert all(jax.tree.leaves(moved))


def test_upernet_of_transformers_is_as_large(timm: ModuleType) -> None:
    del timm
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from train.benchmark.torch_models import make_torch_model

    case = Case("twins_svt_small", "train", 2, 32, "float32", "cpu", head="upernet")
    with torch.device("meta"):  # no values are needed
        torch_model = make_torch_model(case)
    ours = jax.eval_shape(lambda: make_program(case).state[0])
    count = sum(leaf.size for leaf in jax.tree.leaves(ours))
    assert sum(parameter.numel() for parameter in torch_model.module.parameters()) == count


class FakeWorker:
    """Sides whose rounds are known; notes the order in which they work."""

    order: list[str] = []  # noqa: RUF012
    seconds = {OURS: iter([2.0, 1.0, 4.0]), "a": iter([3.0, 3.0, 3.0]), "b": iter([6.0, 2.0, 2.0])}  # noqa: RUF012

    def __init__(self, side: str, case: Case) -> None:  # noqa: ARG002
        self.side = side

    def start(self) -> dict[str, Any]:
        return {"flops": 6.0, "matmul_rate": 12.0} if self.side == OURS else {}

    def time(self, seconds: float) -> float:
        assert seconds == 0.5
        self.order.append(self.side)
        return next(self.seconds[self.side])

    def memory(self) -> dict[str, int]:
        return {"peak_bytes": 1}

    def close(self) -> None:
        self.order.append(f"end {self.side}")


def test_rounds_alternate_and_ratios_are_within_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.benchmark.speed, "Worker", FakeWorker)
    result = train.benchmark.speed.measure(CASE, [OURS, "a", "b"], 3, 0.5)
    assert FakeWorker.order == [OURS, "a", "b"] * 3 + [f"end {side}" for side in (OURS, "a", "b")]
    assert result["best_other"] == "b"  # of medians 3 and 2
    assert result["ratio"][1] == 2.0  # the median of 3, 2 and 0.5
    assert result["sides"][OURS]["seconds"][1] == 2.0
    assert result["sides"][OURS]["share_of_matmul_rate"] == 6 / 2 / 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--variants", "resnet"), "error: --variants='resnet': must be one of twins_"),
        (("--batch", "0"), "error: --batch=0: must be an integer from 1"),
        (("--size", "31"), "error: --size=31: must be an integer from 32"),
        (("--rounds", "1"), "error: --rounds=1: must be an integer from 2"),
        (
            ("--attention_implementation", "cudnn"),
            "error: --attention_implementation='cudnn': must be used with --device cuda --dtype bfloat16",
        ),
        (
            ("--attention_implementation", "pallas", "--device", "tpu"),
            "error: --attention_implementation='pallas': must be used with --device cuda, or cpu",
        ),
        (
            ("--head", "semantic_fpn", "--against", "timm", "--variants", "twins_svt_small"),
            "error: --head='semantic_fpn': must be left out with --against",
        ),
        (
            ("--head", "upernet", "--mode", "train", "--batch", "1"),
            "error: --batch=1: must be 2 or more with --head upernet --mode train",
        ),
        (
            ("--against", "timm", "--variants", "twins_svt_tiny"),
            "error: --variants='twins_svt_tiny': must be left out with --against timm",
        ),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert capsys.readouterr().err.startswith(message)


def test_needs_neither_data_nor_checkpoint_libraries() -> None:
    code = """
import sys
import train.benchmark.speed
import train.huge_pages
from train.benchmark.backends import Case, _make_ours
_make_ours(Case("twins_svt_tiny", "infer", 1, 32, "float32", "cpu")).call()
print([n for n in ("grain", "tensorflow_datasets", "tyro", "numba", "PIL", "torch", "timm") if n in sys.modules])
"""
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output == "[]\n"
