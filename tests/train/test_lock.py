import contextlib
import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import train.lock
from tests.support.alone import call_main
from tests.support.paths import ROOT
from train import prepare
from train.lock import LOCK_FILE, owned
from twins_jax import InputError

HOLD = """
import sys
from pathlib import Path
from train.lock import owned
with owned("workdir", Path(sys.argv[1])):
    print("owned", flush=True)
    sys.stdin.read()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """A process that owns the folder until it is killed."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "owned\n"
    return process


def test_a_killed_owner_leaves_no_lock(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = hold(folder)
    with pytest.raises(InputError) as caught, owned("workdir", folder):
        pass
    owner = f"process {process.pid} on {os.uname().nodename}"
    assert str(caught.value) == f"workdir: {folder} is in use by {owner}: wait for it, or name another"
    process.kill()
    process.communicate()
    assert [path.name for path in folder.iterdir()] == [LOCK_FILE]
    with owned("workdir", folder):
        assert (folder / LOCK_FILE).read_text() == f"{os.uname().nodename} {os.getpid()}\n"
    assert list(folder.iterdir()) == []  # a folder that was there stays


def test_no_trace_of_an_owner_that_wrote_nothing(tmp_path: Path) -> None:
    with contextlib.suppress(ZeroDivisionError), owned("workdir", tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK_FILE).exists()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with owned("workdir", tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "config.json").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["config.json"]


def test_an_owner_that_ends_while_another_opens_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other's lock would be on a file that is no longer in the folder."""
    with contextlib.ExitStack() as first:
        first.enter_context(owned("workdir", tmp_path))

        def lock_after_the_end(*arguments: Any) -> None:
            first.close()
            real(*arguments)

        real = train.lock._lock
        monkeypatch.setattr(train.lock, "_lock", lock_after_the_end)
        with owned("workdir", tmp_path), pytest.raises(InputError, match="in use"), owned("workdir", tmp_path):
            pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_file_systems_without_some_locks(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, "not here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with owned("workdir", tmp_path):
        locked = subprocess.run(
            [sys.executable, "-c", f"import fcntl; fcntl.lockf(open({str(tmp_path / LOCK_FILE)!r}, 'r+'), 6)"],
            capture_output=True,
            check=False,
        )
        assert b"BlockingIOError" in locked.stderr
        assert capsys.readouterr().err == ""
    monkeypatch.setattr(fcntl, "lockf", refuse)
    with owned("workdir", tmp_path):
        warning = f"warning: {tmp_path} cannot be locked ([Errno {number}] not here): a second run in it would go"
        assert capsys.readouterr().err == f"{warning} unnoticed\n"


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "other" / LOCK_FILE).mkdir(parents=True)
    for folder, why in ((tmp_path / "file", "File exists"), (tmp_path / "other", "Is a directory")):
        with pytest.raises(InputError) as caught, owned("workdir", folder):
            pass
        assert str(caught.value) == f"workdir: {folder} cannot be written: {why}"

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with owned("workdir", tmp_path), pytest.raises(InputError, match="is in use by another process: "):
        train.lock.owned("workdir", tmp_path).__enter__()


@pytest.mark.parametrize("flags", [(), ("--eval_only", "--report", "--init", "none")], ids=["training", "report"])
def test_a_second_run_is_refused_before_it_starts(flags: tuple[str, ...], tmp_path: Path) -> None:
    with owned("workdir", tmp_path):
        before = sorted(tmp_path.rglob("*"))
        code, output, errors = call_main(["--distributed.mode", "off", "--workdir", str(tmp_path), *flags])
        assert sorted(tmp_path.rglob("*")) == before
    assert (code, output) == (2, "")
    assert errors.startswith(f"error: workdir: {tmp_path} is in use by process {os.getpid()} on ")
    assert errors.count("\n") == 1


def test_preparing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    for name in prepare.TARS:
        (tmp_path / name).touch()
    with owned("data_dir", tmp_path):
        code = prepare.main(["imagenet2012", "--tars", str(tmp_path), "--data_dir", str(tmp_path)])
    assert code == 2
    assert capsys.readouterr().err.startswith(f"error: data_dir: {tmp_path} is in use by process {os.getpid()} on ")
