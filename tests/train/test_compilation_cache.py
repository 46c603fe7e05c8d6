"""Runs that take compiled programs from the cache; tests/predict has the cache's own tests."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

import train.loop
from tests.support.alone import call_main
from train.config import DistributedConfig
from train.experiment import build
from train.main import parse
from train.recipes import digits
from twins_jax.compilation_cache import compilation_cache

MISSES, HITS = "/jax/compilation_cache/cache_misses", "/jax/compilation_cache/cache_hits"


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collects what JAX's cache does meanwhile, without programs in the process's own memory."""
    found: list[str] = []
    monkeypatch.setattr(train.loop, "compilation_cache", compilation_cache)
    jax.clear_caches()

    def listen(event: str, **_: str | int) -> None:
        found.append(event)

    jax.monitoring.register_event_listener(listen)
    yield found
    jax.monitoring.unregister_event_listener(listen)


@pytest.mark.usefixtures("short_variant")
def test_the_second_start_compiles_nothing(
    tmp_path: Path, arguments: list[str], events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    flags = [*arguments, "--workdir", str(tmp_path / "run"), "--steps", "1"]
    code, _, errors = call_main(flags)
    assert code == 0, errors
    folder = tmp_path / "caches" / "twins_jax" / "compiled"
    assert MISSES in events
    assert any(folder.iterdir())

    events.clear()
    jax.clear_caches()
    with compilation_cache(str(folder)), jax.numpy_dtype_promotion("standard"):
        build(parse(flags))
    assert HITS in events
    assert MISSES not in events


@pytest.mark.parametrize(
    ("flag", "processes", "expected"),
    [
        ("", 1, [None]),
        ("off", 1, ["off"]),
        ("a folder", 1, ["a folder"]),
        ("a folder", 2, ["a folder"]),
        ("", 2, []),  # JAX's own setting holds
    ],
)
def test_the_flag(monkeypatch: pytest.MonkeyPatch, flag: str, processes: int, expected: list[str | None]) -> None:
    given: list[str | None] = []

    def keep(folder: str | None) -> contextlib.nullcontext[None]:
        given.append(folder)
        return contextlib.nullcontext()

    monkeypatch.setattr(train.loop, "compilation_cache", keep)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(train.loop, "_run", lambda config: {"top1": config.seed})
    run = dataclasses.replace(digits(), compilation_cache=flag, distributed=DistributedConfig(mode="off"))
    assert train.loop.run(run) == {"top1": run.seed}
    assert given == expected
