import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from train import prepare, progress
from train.progress import Progress, counted, duration

VALUES = {"epoch": 0.312, "loss": 2.3149, "learning_rate": 1.2e-5, "images_per_s": 1234.2, "mfu": 0.4}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def seconds(step: float) -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += step


def test_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(20, 16220, seconds(1.4).__next__) as bar:
        for _ in range(30):
            bar.update()
        bar.log(50, VALUES)
        bar.log_evaluation(50, {"top1": 0.81254, "loss": 0.70128, "examples": 50000})
    output, errors = capsys.readouterr()
    assert errors == "step 50/16220 epoch 0.3 loss 2.31 lr 1.2e-05 1234 images/s 12m35s left\n"
    assert output == "step 50/16220 eval top1 0.8125 loss 0.7013 examples 50000\n"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    for name in ("COLUMNS", "LINES"):  # a bar is cut to the width, and says how fast the test runs
        monkeypatch.setenv(name, "200")
    with Progress(20, 50) as bar:
        for _ in range(30):
            bar.update()
        bar.log(50, VALUES)
        bar.log_evaluation(50, {"top1": 0.81254})
        assert list(counted("evaluating", "examples", 5, [2, 2, 2], size=int)) == [2, 2, 2]
    shown = terminal.getvalue()
    assert "50/50 " in shown
    assert "epoch 0.3 loss 2.31 1234 images/s mfu 0.40" in shown
    assert "evaluating:   0%|" in shown
    assert "step 50" not in shown
    assert capsys.readouterr().out == "step 50/50 eval top1 0.8125\n"


def test_counted_says_where_it_is_from_time_to_time(capsys: pytest.CaptureFixture[str]) -> None:
    clock = seconds(progress.SECONDS_BETWEEN_LINES / 2.5)
    assert list(counted("evaluating", "examples", 50, [8] * 7, size=int, clock=clock.__next__)) == [8] * 7
    assert capsys.readouterr().err.splitlines() == [f"evaluating {done}/50 examples" for done in (16, 40)]
    assert list(counted("evaluating", "examples", 0, [])) == []
    assert capsys.readouterr().err == ""


def test_other_processes_show_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "is_main_process", lambda: False)
    for stderr in (sys.stderr, terminal := Terminal()):
        monkeypatch.setattr(sys, "stderr", stderr)
        with Progress(0, 1) as bar:
            bar.update()
            bar.log(1, VALUES)
            bar.log_evaluation(1, {"top1": 1.0})
        assert list(counted("evaluating", "examples", 1, ["a"])) == ["a"]
    assert (*capsys.readouterr(), terminal.getvalue()) == ("", "", "")


@pytest.mark.parametrize(
    ("length", "text"),
    [
        *((0, "0s"), (0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (750, "12m30s"), (3599, "59m59s"), (3600, "1h00m")),
        *((11100, "3h05m"), (86399, "23h59m"), (86400, "1d00h"), (187000, "2d03h"), (40 * 86400, "40d00h")),
    ],
)
def test_duration(length: float, text: str) -> None:
    assert duration(length) == text


def test_preparing_draws_no_bar_into_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    monkeypatch.setattr(tfds, "disable_progress_bar", lambda: called.append(1))
    called: list[int] = []

    class Builder:
        data_dir = str(tmp_path / "imagenet2012" / "5.1.0")

        def download_and_prepare(self, **_: object) -> None:
            assert called == [1]

    monkeypatch.setattr(tfds, "builder", lambda *_, **__: Builder())
    for name in prepare.TARS:
        (tmp_path / name).touch()
    assert prepare.main(["imagenet2012", "--tars", str(tmp_path)]) == 0
    output, errors = capsys.readouterr()
    assert output.startswith(f"preparing imagenet2012 from {tmp_path}, which takes hours for all of ImageNet\n")
    assert errors == ""
    (tmp_path / "imagenet2012" / "5.1.0").mkdir(parents=True)
    assert prepare.main(["imagenet2012", "--tars", str(tmp_path)]) == 0
    assert capsys.readouterr() == (f"imagenet2012 is in {tmp_path}/imagenet2012/5.1.0\n", "")
