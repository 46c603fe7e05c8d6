"""Files of figures, and the commands that write them."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import train.benchmark.aot
import train.benchmark.input_pipeline
import train.benchmark.roofline
import train.benchmark.speed
from train.benchmark.results import check_out, write_figures
from twins_jax import InputError

COMMANDS = {
    "benchmark": (train.benchmark.speed.main, ()),
    "roofline": (train.benchmark.roofline.main, ()),
    "aot": (train.benchmark.aot.main, ("imagenet_svt_small", "--topology", "v5e:2x2")),
    "data": (train.benchmark.input_pipeline.main, ()),
}


def test_earlier_figures_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = check_out(str(tmp_path / "new" / "figures.json"))
    write_figures(out, {"a": 1})
    write_figures(out, {"a": [2.5, None]})
    assert json.loads(out.read_text()) == {"a": [2.5, None]}

    def no_space(source: str, target: str) -> None:
        raise OSError(28, "No space left on device", source, None, target)

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(InputError, match=r"figures\.json: could not be written: .*No space left"):
        write_figures(out, {"a": 3})
    assert json.loads(out.read_text()) == {"a": [2.5, None]}
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("path", ["folder", "file/beneath.json", "/", "/dev/null"])
def test_nothing_is_measured_for_a_file_that_cannot_be_written(
    command: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("")
    main: Callable[[Sequence[str]], int]
    main, arguments = COMMANDS[command]
    assert main([*arguments, "--out", path]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: --out={path!r}: must be ")
    assert captured.err.count("\n") == 1
    assert not captured.out
    assert sorted(str(x) for x in Path().iterdir()) == ["file", "folder"]
    assert Path("/dev/null").is_char_device()
