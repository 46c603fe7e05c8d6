"""The package as pyproject.toml describes it; `tests/scripts/wheel.sh` builds it."""

import importlib
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
from train.benchmark import aot, input_pipeline
from train.extra import TRAINING
from train.main import main
from twins_jax.extra import PACKAGES, check_installed

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


def test_every_data_file_is_in_the_wheel() -> None:
    folder = ROOT / "twins_jax"
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["twins_jax"]
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))
    assert found == set(files)


@pytest.mark.parametrize("script", PYPROJECT["project"]["scripts"])
def test_console_scripts_have_a_main(script: str) -> None:
    module, _, function = PYPROJECT["project"]["scripts"][script].partition(":")
    module = module.removeprefix("twins_jax.") if module.startswith("twins_jax.train") else module  # as in a clone
    assert callable(getattr(importlib.import_module(module), function))


def test_what_runs_need_is_in_the_extra() -> None:
    project = PYPROJECT["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    required = {requirement.split(">")[0] for requirement in requirements}
    assert {PACKAGES.get(module, module) for module in TRAINING} <= required


def test_nothing_is_said_of_packages_that_are_installed() -> None:
    check_installed(*TRAINING, purpose="training", extra="train")


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (main, [], "training needs absl-py, pillow; install twins_jax with its extra `train`"),
        (
            prepare.main,
            ["imagenet2012", "--tars", "."],
            "preparing a data set needs tensorflow-datasets; install twins_jax with its extra `prepare`",
        ),
        (plot.main, ["a", "b"], "drawing needs matplotlib; install twins_jax with its extra `plot`"),
        (aot.main, [], "compiling needs absl-py, pillow; install twins_jax with its extra `train`"),
        (
            input_pipeline.main,
            [],
            "measuring the input pipeline needs absl-py, pillow; install twins_jax with its extra `train`",
        ),
    ],
    ids=["main", "prepare", "plot", "aot", "input_pipeline"],
)
def test_commands_without_their_extra(
    command: Callable[[list[str]], int],
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    missing = {"absl", "matplotlib", "PIL", "tensorflow_datasets"}
    monkeypatch.setattr("twins_jax.extra.find_spec", lambda name: None if name in missing else name)
    with pytest.raises(SystemExit, match="0"):  # help needs none of them
        command(["--help"])
    assert capsys.readouterr().out.startswith("usage: ")
    assert command(arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    missing.add("tyro")
    assert command(["--help"]) == 2
    assert re.fullmatch(r"error: .* needs tyro; install twins_jax with its extra `.*`\n", capsys.readouterr().err)


@pytest.mark.parametrize("command", ["main", "prepare", "plot", "benchmark.aot", "benchmark.input_pipeline"])
def test_commands_import_nothing_of_their_extra_before_it_is_checked(tmp_path: Path, command: str) -> None:
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
        f"sys.argv = [{command!r}]\n"
        f"runpy.run_module('train.{command}', run_name='__main__')\n"
    )
    result = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.match(r"error: .* needs tyro; install twins_jax with its extra `", result.stderr)
    assert result.stderr.count("\n") == 1
