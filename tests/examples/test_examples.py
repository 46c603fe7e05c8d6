"""The scripts in examples/, on a model and data so small that only the way is tested, not the answers."""

import dataclasses
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image
from safetensors.numpy import load_file, save_file

import twins_jax
from tests.support.compilation import fast_compilation
from tests.support.images import picture
from tests.support.models import PCPVT, classifier, named
from tests.support.models import run as logits_of
from tests.support.paths import ROOT
from twins_jax.config import VARIANTS

# Of four equal stages: JAX compiles something for every shape of a parameter.
CONFIG = dataclasses.replace(PCPVT, embed_dims=(16,) * 4, num_heads=(2,) * 4, mlp_ratios=(2,) * 4)

Run = Callable[..., list[str]]
"""(example, arguments) -> printed lines."""


@pytest.fixture(scope="module", autouse=True)
def _small_and_fast() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, fast_compilation(), jax.numpy_dtype_promotion("standard"):
        patch.setitem(VARIANTS, "twins_svt_tiny", CONFIG)
        yield


@pytest.fixture
def variables() -> dict[str, Any]:
    """Those of the example that has run."""
    return {}


@pytest.fixture
def run(
    variables: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Run:
    monkeypatch.chdir(tmp_path)

    def run_example(name: str, *arguments: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        variables.update(runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__"))
        return capsys.readouterr().out.splitlines()

    return run_example


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "twins.safetensors"
    params = traverse_util.flatten_dict(twins_jax.get_params(classifier(CONFIG)), sep="/")
    save_file({name: np.asarray(array) for name, array in params.items()}, path)
    return path


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photographs")
    paths = [folder / f"{name}.png" for name in ("first", "second", "third", "first again")]
    for i, path in enumerate(paths):
        picture(300, 260, seed=i % 3).save(path)
    return paths


def test_every_example_is_tested() -> None:
    names = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert names == {"attention", "classify", "linear_probe", "own_training_loop", "retrieval"}
    text = Path(__file__).read_text(encoding="utf-8")
    assert all(f'run("{name}"' in text for name in names)


def test_classify(run: Run, weights: Path, photographs: list[Path]) -> None:
    lines = run("classify", "--weights", weights, *photographs[:2])
    assert lines[0::6] == [str(path) for path in photographs[:2]]
    logits = logits_of(twins_jax.from_pretrained(weights), twins_jax.preprocess(photographs[1]))[0]
    probability, index = float(jax.nn.softmax(logits).max()), int(logits.argmax())
    assert lines[7] == f"  {probability:6.1%}  class {index}"


def test_own_training_loop(run: Run) -> None:
    lines = run("own_training_loop", "--steps", 11)
    losses = [float(line.rpartition(" ")[2]) for line in lines[:2]]
    assert losses[1] < 0.8 * losses[0]  # by more than two batches differ
    assert re.fullmatch(r"accuracy on 297 other digits: 0\.\d{3}", lines[-1])


def test_linear_probe(run: Run, variables: dict[str, Any], weights: Path) -> None:
    lines = run("linear_probe", "--weights", weights, "--steps", 11)
    losses = [float(line.rpartition(" ")[2]) for line in lines[:2]]
    assert losses[1] < losses[0]
    assert re.fullmatch(r"accuracy on 297 other digits: 0\.\d{3}", lines[-1])
    before, after = named(twins_jax.get_params(classifier(CONFIG))), named(variables["params"])
    changed = {name for name in after if after[name].shape != before[name].shape or (after[name] != before[name]).any()}
    assert changed == {name for name in after if not name.startswith("backbone/")}


def test_retrieval(run: Run, variables: dict[str, Any], weights: Path, photographs: list[Path]) -> None:
    lines = run("retrieval", "--weights", weights, "--nearest", 1, *photographs)
    assert lines[0] == f"{photographs[0]}: {photographs[3]} (1.000)"
    assert lines[3] == f"{photographs[3]}: {photographs[0]} (1.000)"
    stored = load_file(weights)
    for name, array in named(variables["params"]).items():
        np.testing.assert_array_equal(array, stored[name])


def test_retrieval_of_digits(run: Run) -> None:
    lines = run("retrieval")
    assert len(lines) == 200
    found = [re.findall(r"digit \d+, a (\d)", line) for line in lines]
    assert np.mean([digits[1] == digits[0] for digits in found]) > 0.5  # chance: 0.1


def test_attention(run: Run, variables: dict[str, Any]) -> None:
    lines = run("attention", "--block", 1, "--query", 80, 120)  # of scikit-learn's flower
    assert lines == ["attention.png: 448x448, attention of the pixel 80, 120"]
    with Image.open("attention.png") as image:
        assert image.size == (448, 448)
        model, flower = variables["model"], variables["image"]
        expected = twins_jax.visualize.attention_overlay(model, flower, (80, 120), block=1)
        np.testing.assert_array_equal(image, expected)
