import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from numba.core import caching

from tests.support.paths import ROOT
from train.data.compiled import compiled

PROGRAM = """
import pwd, tempfile

def fail(*_):
    raise KeyError("getpwuid(): uid not found: 12345")

def refuse(*_, **__):
    raise PermissionError(13, "Permission denied")

pwd.getpwuid = fail
tempfile.TemporaryFile = refuse  # numba tries each place so; for root every one can be written

import numpy as np
from train.data.pixels import look_up
print(look_up(np.full((1, 1, 3), 7, np.uint8), np.arange(256)[::-1].astype(np.uint8)).ravel())
"""


def test_an_install_of_another_user_without_home_or_name() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    environment["PYTHONPATH"] = str(ROOT)
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "[248 248 248]\n", "")


def make() -> Any:
    """A kernel as a new process finds it."""
    return compiled(double)


def double(x: int) -> int:
    return 2 * x


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(caching.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def test_later_processes_read_the_machine_code(folder: Path) -> None:
    assert make()(3) == 6
    assert sorted(path.suffix for path in folder.rglob("*.nb?")) == [".nbc", ".nbi"]
    again = make()
    assert again(3) == 6
    assert sum(again.stats.cache_hits.values()) == 1


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("content", [b"", b"\0" * 100, None])
def test_a_damaged_cache_is_made_anew(suffix: str, content: bytes | None, folder: Path) -> None:
    make()(3)
    (path,) = folder.rglob(f"*{suffix}")
    path.write_bytes(path.read_bytes()[:-9] if content is None else content)
    assert make()(3) == 6
    again = make()
    assert again(3) == 6
    assert sum(again.stats.cache_hits.values()) == 1


def test_a_full_disk_under_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    assert make()(3) == 6
    assert not list(folder.rglob("*.nb?"))
