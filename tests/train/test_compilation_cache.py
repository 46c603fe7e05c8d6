"""Runs that take compiled programs from the cache; tests/predict has the cache's own tests."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

import train.loop
from tests.support.alone import call_main
from train.config import DistributedConfig
from train.recipes import digits
from twins_jax.compilation_cache import compilation_cache

MISSES, HITS = "/jax/compilation_cache/cache_misses", "/jax/compilation_cache/cache_hits"


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What JAX's cache does meanwhile, without programs in the process's own memory."""
    found: list[str] = []
    monkeypatch.setattr(train.loop, "compilation_cache", compilation_cache)
    jax.clear_caches()

    def listen(event: str, **_: str | int) -> None:
        found.append(event)

    jax.monitoring.register_event_listener(listen)
    yield found
    jax.monitoring.unregister_event_listener(listen)


def train_in(workdir: Path, arguments: list[str], *flags: str) -> dict[str, float]:
    code, output, errors = call_main([*arguments, "--workdir", str(workdir), "--steps", "2", *flags])
    assert code == 0, errors
    return dict(json.loads(output.splitlines()[-1].removeprefix("final: ")))


@pytest.mark.usefixtures("short_variant")
def test_the_second_run_compiles_nothing(
    tmp_path: Path, arguments: list[str], events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    first = train_in(tmp_path / "first", arguments)
    folder = tmp_path / "caches" / "twins_jax" / "compiled"
    assert MISSES in events
    assert any(folder.iterdir())

    events.clear()
    jax.clear_caches()
    second = train_in(tmp_path / "second", arguments, "--compilation_cache", str(folder))
    assert HITS in events
    assert MISSES not in events
    assert second == first


@pytest.mark.parametrize(("flag", "folder"), [("", None), ("off", "off"), ("a folder", "a folder")])
def test_the_flag(monkeypatch: pytest.MonkeyPatch, flag: str, folder: str | None) -> None:
    given: list[str | None] = []

    def keep(folder: str | None) -> contextlib.nullcontext[None]:
        given.append(folder)
        return contextlib.nullcontext()

    monkeypatch.setattr(train.loop, "compilation_cache", keep)
    monkeypatch.setattr(train.loop, "_run", lambda config: {"top1": config.seed})
    run = dataclasses.replace(digits(), compilation_cache=flag, distributed=DistributedConfig(mode="off"))
    assert train.loop.run(run) == {"top1": run.seed}
    assert given == [folder]
