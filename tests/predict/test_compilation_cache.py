"""The cache on disk: used by a second process, and never in the way."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from twins_jax import compilation_cache as module
from twins_jax.compilation_cache import compilation_cache
from twins_jax.errors import InputError


@pytest.fixture(autouse=True)
def _no_cache_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def compile_once() -> None:
    """Compiles a program as a new process would."""
    jax.clear_caches()
    assert jax.jit(lambda x: x * 3 + 1)(jnp.arange(5.0))[4] == 13


def entries(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*-cache")}


def test_programs_are_kept_in_the_users_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "caches" / "twins_jax" / "compiled"
    with compilation_cache(None):
        compile_once()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    kept = entries(folder)
    assert any("lambda" in name for name in kept)

    hits = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
    with compilation_cache(None):
        compile_once()
    assert hits.count("/jax/compilation_cache/cache_hits") == len(kept)
    assert entries(folder) == kept
    assert jax.config.values["jax_compilation_cache_dir"] is None
    compile_once()  # outside nothing is kept
    assert entries(folder) == kept
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("set_to", "expected"), [("/elsewhere", "/elsewhere"), ("relative", "~/.cache"), (None, "~/.cache")]
)
def test_the_default_follows_the_xdg_specification(
    set_to: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    if set_to:
        monkeypatch.setenv("XDG_CACHE_HOME", set_to)
    assert module._default() == Path(os.path.expanduser(expected)) / "twins_jax" / "compiled"


def test_moved_and_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with compilation_cache("here"):
        compile_once()
    assert entries(tmp_path / "here")
    with compilation_cache("off"):
        compile_once()
    assert not (tmp_path / "off").exists()
    assert not (tmp_path / "caches").exists()
    with pytest.raises(InputError, match=r"^--compilation_cache='gs://bucket': must be a path on this machine"):
        compilation_cache("gs://bucket").__enter__()


def test_jaxs_own_setting_stays(tmp_path: Path) -> None:
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    with compilation_cache(None):
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "own")
    with compilation_cache(str(tmp_path / "other")):
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "other")
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "own")
    assert not (tmp_path / "caches").exists()


def test_a_damaged_entry_costs_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with compilation_cache(str(tmp_path)):
        compile_once()
    for name, content in entries(tmp_path).items():
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    with compilation_cache(str(tmp_path)):
        compile_once()
    lines = capsys.readouterr().err.splitlines()
    assert lines
    for line in lines:
        assert line.startswith("warning: Error reading persistent compilation cache entry for '")
        assert line.endswith(f"; {tmp_path} can be removed")


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda folder: folder.write_text("a file"), "File exists"),
        (lambda folder: (folder.mkdir(), folder.chmod(0o777)), "others can write to it"),
    ],
    ids=["file", "open to all"],
)
def test_a_folder_that_is_of_no_use_costs_a_line(prepare, reason, tmp_path, capsys) -> None:
    folder = tmp_path / "caches" / "twins_jax" / "compiled"
    folder.parent.mkdir(parents=True)
    prepare(folder)
    with compilation_cache(None):
        compile_once()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: no compilation cache: {folder}: {reason}")


def test_the_folder_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with compilation_cache(str(tmp_path)):
        compile_once()
    assert os.listdir(tmp_path) == []
    expected = f"warning: no compilation cache: {tmp_path}: others can write to it: they could change what runs here\n"
    assert capsys.readouterr().err == expected


def test_a_folder_that_cannot_be_made_costs_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    with compilation_cache(None):
        compile_once()
    expected = "warning: no compilation cache: /proc/none/twins_jax/compiled: No such file or directory\n"
    assert capsys.readouterr().err == expected
    monkeypatch.setattr(module, "_default", lambda: Path("~/.cache/twins_jax"))  # no home folder
    monkeypatch.chdir(tmp_path)
    with compilation_cache(None):
        compile_once()
    assert capsys.readouterr().err == "warning: no compilation cache: the user has no home folder\n"
    assert os.listdir(tmp_path) == []


def test_a_full_disk_costs_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jax._src.lru_cache.LRUCache.put", full)
    with compilation_cache(str(tmp_path)):
        compile_once()
    lines = capsys.readouterr().err.splitlines()
    assert lines
    for line in lines:
        assert line.startswith("warning: Error writing persistent compilation cache entry for '")
        assert line.endswith(f"No space left on device; {tmp_path} can be removed")
