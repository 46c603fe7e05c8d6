"""The package as pyproject.toml describes it; `tests/scripts/wheel.sh` builds it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import twins_jax
from tests.support.paths import ROOT
from train.extra import PACKAGES, check_extra
from train.main import main
from twins_jax.errors import InputError

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
    assert set(PACKAGES.values()) <= required


def test_main_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    check_extra()
    monkeypatch.setattr("train.extra.find_spec", lambda name: None if name in ("grain", "PIL") else name)
    with pytest.raises(InputError):
        check_extra()
    assert main(["--help"]) == 2
    assert capsys.readouterr().err == (
        "error: training needs grain, pillow; install twins_jax with its extra `train`\n"
    )


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_main_imports_nothing_of_the_extra_before_it_is_checked(tmp_path: Path, arguments: list[str]) -> None:
    # A finder that comes first and finds none of them, as where they are not installed.
    program = tmp_path / "program.py"
    program.write_text(
        "import importlib.util, runpy, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"missing = {sorted(set(PACKAGES) - {'optax'})!r}  # flax brings optax\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name in missing else found(name, *more)\n"
        "sys.modules |= dict.fromkeys(missing)\n"
        f"sys.argv = ['train.main', *{arguments!r}]\n"
        "runpy.run_module('train.main', run_name='__main__')\n"
    )
    result = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: training needs grain, numba, ")
    assert result.stderr.count("\n") == 1
