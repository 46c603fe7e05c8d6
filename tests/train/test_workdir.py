import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import runs
from train.workdir import check_writable, new_damaged
from twins_jax import InputError


@pytest.fixture
def forbid(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Lets a folder be another user's, also for root."""

    def forbid_folder(folder: Path) -> None:
        mkdtemp = tempfile.mkdtemp

        def make(*args: Any, **kwargs: Any) -> str:
            if str(kwargs.get("dir")) == str(folder):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), f"{folder}/x")
            return mkdtemp(*args, **kwargs)

        monkeypatch.setattr(tempfile, "mkdtemp", make)

    return forbid_folder


def test_a_folder_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    check_writable(tmp_path)
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "metrics.jsonl").write_text("x")
    before = runs.content(tmp_path)
    check_writable(tmp_path)
    assert runs.content(tmp_path) == before


@pytest.mark.parametrize("name", ["checkpoints", "damaged"])
def test_a_folder_of_another_user(name: str, forbid: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    forbid(tmp_path / name)
    with pytest.raises(InputError, match=rf"^{tmp_path}/{name}: cannot be written: Permission denied$"):
        check_writable(tmp_path)


@pytest.mark.parametrize(
    ("name", "is_file", "allowed"),
    [
        *((name, True, "a folder") for name in ("checkpoints", "damaged")),
        *((f"{name}.json", False, "a file") for name in ("config", "dataset")),
        *((f"{name}.jsonl", False, "a file") for name in ("config_changes", "metrics")),
    ],
)
def test_another_kind_of_thing(name: str, is_file: bool, allowed: str, tmp_path: Path) -> None:
    (tmp_path / name).touch() if is_file else (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=rf"^{tmp_path}/{name}: must be {allowed}; move it away to go on$"):
        check_writable(tmp_path)


def test_metrics_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "metrics.jsonl").touch()
    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(InputError, match=rf"^{tmp_path}/metrics.jsonl: cannot be read and written: Permission denied$"):
        check_writable(tmp_path)


def test_what_is_damaged_gets_a_name_of_its_own(tmp_path: Path) -> None:
    for expected in ("3", "3.1", "3.2"):
        path = new_damaged(tmp_path, "3")
        assert path == tmp_path / "damaged" / expected
        path.touch()
