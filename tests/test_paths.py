"""Paths as users give them: the rules, and that every argument of every command follows them."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import port_weights
import train.benchmark.aot
import train.benchmark.input_pipeline
import train.benchmark.roofline
import train.benchmark.speed
import train.main
import train.plot
import train.prepare
from twins_jax import InputError, backbone_from_pretrained, from_pretrained
from twins_jax.paths import source_path, target_path, weights_source

URLS = ("gs://bucket/run", "s3://bucket/run", "hf://owner/name", "http://host/file", "file:///a", "host:/a", "gs:/a")
REFUSED = {
    "": "the path of a file or folder",
    **dict.fromkeys(URLS, "a path on this machine"),
    "hf_hub:owner/name": "a path on this machine",
    "a\0b": "a path without control characters",
    "a\nb": "a path without control characters",
    "missing/" + "a" * 256: "made of names of at most 255 bytes",
    "é" * 128: "made of names of at most 255 bytes",
    "a/" * 3000: "a path that can be used: File name too long",
    "~no_such_user/a": "a path: Could not determine home directory",
    "file/beneath": "a path that can be used: Not a directory",
    "link": "no link that leads nowhere",
    "loop": "no link that leads nowhere",
    "loop/a": "a path that can be used: Too many levels",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a file, a folder, a link to nothing and a link to itself; home/ is the user's."""
    folder = tmp_path / "here"
    (folder / "home").mkdir(parents=True)
    (folder / "folder").mkdir()
    (folder / "file").write_text("")
    (folder / "link").symlink_to("nothing")
    (folder / "loop").symlink_to("loop")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder / "home"))
    return folder


@pytest.mark.parametrize("path", [source_path, target_path, weights_source])
@pytest.mark.parametrize("value", REFUSED, ids=ascii)
def test_refused(path: Callable[[str, str], Any], value: str, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match=r"^field=.*: must be ") as caught:
        path("field", value)
    assert REFUSED[value] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("value", [None, 3, b"a", True])
def test_no_path_at_all(value: Any) -> None:
    with pytest.raises(InputError, match=r"^field=.*: must be text"):
        source_path("field", value)


@pytest.mark.parametrize("path", [source_path, target_path])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("folder", "folder"),
        ("folder/", "folder"),
        ("./folder//new/", "folder/new"),
        ("new name, with spaces", "new name, with spaces"),
        ("~", "{home}"),
        ("~/a b", "{home}/a b"),
        ("./~a", "{here}/~a"),
        ("a~", "a~"),
        ("run:1/step:2", "run:1/step:2"),  # no URL: no "/" follows the ":"
        ("c:/a", "c:/a"),
        ("數據", "數據"),
        (Path("folder"), "folder"),
    ],
)
def test_taken(path: Callable[[str, Any], Path], value: str | Path, expected: str, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    assert str(path("field", value)) == expected.format(home=folder / "home", here=folder)
    assert sorted(folder.rglob("*")) == before


def test_names_that_are_no_utf_8(folder: Path) -> None:
    value = os.fsdecode(b"caf\xe9")
    assert source_path("field", value) == Path(value)
    with pytest.raises(InputError, match=r"^field='caf\\udce9': must be a path in UTF-8"):
        target_path("field", value)
    Path(value).mkdir()
    os.chdir(value)
    with pytest.raises(InputError, match="must be a path in UTF-8"):  # Orbax is given the whole path
        target_path("field", "a")
    assert sorted(folder.glob("*/*")) == []


@pytest.mark.parametrize(
    ("kind", "value", "allowed"),
    [
        ("file", "folder", "the path of a file, which may be a new one"),
        ("file", "new/", "the path of a file, which may be a new one"),
        ("file", "/dev/null", "the path of a file, which may be a new one"),
        ("file", ".", "the path of a file, which may be a new one"),
        ("folder", "file", "the path of a folder, which may be a new one"),
        ("folder", "/dev/null", "the path of a folder, which may be a new one"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_targets_of_the_other_kind(kind: Any, value: str, allowed: str) -> None:
    with pytest.raises(InputError, match=allowed):
        target_path("field", value, kind)
    target_path("field", value)  # where either will do


RUN = ["--distributed.mode", "off", "--workdir", "run"]
COMMANDS: list[tuple[str, Callable[[list[str]], int], list[str]]] = [
    # The name in messages, the command, and its arguments before the path.
    ("workdir", train.main.main, RUN[:-1]),
    ("init", train.main.main, [*RUN, "--init"]),
    ("config", train.main.main, [*RUN, "--config"]),
    ("workdir", train.main.main, ["--eval_only", "--workdir"]),
    ("data.dir", train.main.main, [*RUN, "--data.source", "folder", "--data.dir"]),
    ("data.dir", train.main.main, [*RUN, "--data.source", "imagenet2012", "--data.dir"]),
    ("--out", train.benchmark.speed.main, ["--out"]),
    ("--out", train.benchmark.roofline.main, ["--out"]),
    ("--out", train.benchmark.aot.main, ["--out"]),
    ("--out", train.benchmark.input_pipeline.main, ["folder", "--out"]),
    ("dir", train.benchmark.input_pipeline.main, []),
    ("tars", train.prepare.main, ["imagenet2012", "--tars"]),
    ("data_dir", train.prepare.main, ["imagenet2012", "--tars", "folder", "--data_dir"]),
    ("metrics", train.plot.main, []),
    ("out", train.plot.main, ["file"]),
    ("SRC", port_weights.main, ["--inspect"]),
    ("DST", port_weights.main, ["folder"]),
    ("--report", port_weights.main, ["folder", "new", "--verify", "--report"]),
]


@pytest.mark.parametrize(("name", "command", "arguments"), COMMANDS, ids=lambda value: getattr(value, "__module__", ""))
def test_arguments_of_commands(
    name: str,
    command: Callable[[list[str]], int],
    arguments: list[str],
    folder: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = sorted(folder.rglob("*"))
    for value in ("gs://bucket/run", "~no_such_user/a", "a" * 256, "link", "file/beneath"):
        words = [value, "picture.svg"] if name == "metrics" else [*arguments, value]
        assert command(words) == 2
        error = capfd.readouterr().err
        assert re.fullmatch(rf"error: {re.escape(name)}='.*': must be .*\n", error), error
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("load", [from_pretrained, backbone_from_pretrained])
@pytest.mark.parametrize("value", ["gs://bucket/run", "link", "", None])
@pytest.mark.usefixtures("folder")
def test_sources_of_functions(load: Callable[[Any], Any], value: Any) -> None:
    with pytest.raises(InputError, match=r"^source=.*: must be "):
        load(value)


def test_weights_by_the_name_of_a_repository() -> None:
    assert weights_source("field", "hf-hub:timm/twins_svt_small.in1k") == "hf-hub:timm/twins_svt_small.in1k"
    with pytest.raises(InputError, match=r"^field='hf-hub:a\\n': must be a repository's name"):
        weights_source("field", "hf-hub:a\n")
    with pytest.raises(InputError, match="must be a path on this machine"):
        target_path("field", "hf-hub:timm/twins_svt_small.in1k")
