"""The package as pyproject.toml describes it; `tests/scripts/wheel.sh` builds it."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import twins_jax
from tests.support.paths import ROOT
from train import plot, prepare
from train.extra import PACKAGES, TRAINING, check_installed
from train.main import main

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages(folder: str) -> list[str]:
    return [".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / folder).rglob("__init__.py")]


def test_every_package_is_in_the_wheel() -> None:
    expected = [*packages("twins_jax"), *(f"twins_jax.{name}" for name in packages("train"))]
    assert PYPROJECT["tool"]["setuptools"]["packages"] == sorted(expected)
    in_package = {path.parent for name in ("twins_jax", "train") for path in (ROOT / name).rglob("*.py")}
    assert {path for path in in_package if not (path / "__init__.py").exists()} == set()


def test_version() -> None:
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "twins_jax.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", twins_jax.__version__)


def test_what_runs_need_is_in_the_extra() -> None:
    required = {requirement.split(">")[0] for requirement in PYPROJECT["project"]["optional-dependencies"]["train"]}
    assert {PACKAGES.get(module, module) for module in TRAINING} <= required


def test_nothing_is_said_of_packages_that_are_installed() -> None:
    check_installed(*TRAINING, purpose="training", extra="train")


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: main(["--help"]), "training needs absl-py, pillow, tyro; install twins_jax with its extra `train`"),
        (
            lambda: prepare.main(["--help"]),
            "preparing a data set needs tensorflow-datasets, tyro; install twins_jax with its extra `prepare`",
        ),
        (plot.main, "drawing needs matplotlib, tyro; install twins_jax with its extra `plot`"),
    ],
    ids=["main", "prepare", "plot"],
)
def test_commands_without_their_extra(
    run: Callable[[], int], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ("absl", "matplotlib", "PIL", "tensorflow_datasets", "tyro")
    monkeypatch.setattr("train.extra.find_spec", lambda name: None if name in missing else name)
    assert run() == 2
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize("arguments", [["main", "--help"], ["main"], ["prepare"], ["plot"]], ids=" ".join)
def test_commands_import_nothing_of_their_extra_before_it_is_checked(tmp_path: Path, arguments: list[str]) -> None:
    # A finder that comes first and finds none of them, as where they are not installed. Flax brings absl and optax.
    missing = {*TRAINING, "matplotlib", "tensorflow_datasets"} - {"absl", "optax"}
    program = tmp_path / "program.py"
    program.write_text(
        "import importlib.util, runpy, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"missing = {sorted(missing)!r}\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name in missing else found(name, *more)\n"
        "sys.modules |= dict.fromkeys(missing)\n"
        f"sys.argv = {arguments!r}\n"
        f"runpy.run_module('train.{arguments[0]}', run_name='__main__')\n"
    )
    result = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.match(r"error: .* needs .*, tyro; install twins_jax with its extra `", result.stderr)
    assert result.stderr.count("\n") == 1
