import contextlib
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from tests.support.disk import largest_file
from tests.support.paths import ROOT
from train.metric_writer import MetricWriter
from twins_jax import InputError


def write(workdir: Path, start: int, *records: tuple[int, str, dict[str, Any]]) -> None:
    with MetricWriter(workdir, start) as writer:
        for step, split, values in records:
            writer.write(step, split, values)


def lines(workdir: Path) -> list[Any]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir: Path) -> list[Event]:
    """The records of all event files: length, checksum, event, checksum (TensorFlow's record format)."""
    found = []
    for path in sorted((workdir / "tensorboard").glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


RECORDS = (
    (2, "train", {"loss": 2.5, "grad_norm": 1e-9}),
    (4, "train", {"loss": 0.1, "grad_norm": 3.0}),
    (4, "eval", {"top1": 1 / 3, "examples": 355}),
    (6, "train", {"loss": 1 / 7, "grad_norm": 3.0}),
)


def as_lines(*records: tuple[int, str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"step": step, "split": split, **values} for step, split, values in records]


def test_a_line_for_each_record_with_every_digit(tmp_path: Path) -> None:
    write(tmp_path, 0, *RECORDS)
    assert lines(tmp_path) == as_lines(*RECORDS)


def test_a_line_is_written_at_once(tmp_path: Path) -> None:
    with MetricWriter(tmp_path, 0) as writer:
        writer.write(*RECORDS[0])
        assert lines(tmp_path) == as_lines(RECORDS[0])


@pytest.mark.parametrize(("start", "kept"), [(0, 0), (1, 0), (2, 1), (4, 3), (5, 3), (6, 4), (9, 4)])
@pytest.mark.parametrize("rest", ["", '{"step": 7, "split": "tr', '{"step": 8, "split": "train", "loss": 1.0}'])
def test_a_rerun_drops_what_it_will_do_again(start: int, kept: int, rest: str, tmp_path: Path) -> None:
    write(tmp_path, 0, *RECORDS)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(rest)  # of a line that a kill cut off, or of whose end it left nothing but the newline out
    expected = [*as_lines(*RECORDS[:kept]), *([json.loads(rest)] if start >= 8 and rest.endswith("}") else [])]
    again = (start + 1, "train", {"loss": 4.0})
    write(tmp_path, start, again)
    assert lines(tmp_path) == [*expected, *as_lines(again)]


def test_tensorboard_shows_the_same_values(tmp_path: Path) -> None:
    write(tmp_path, 0, *RECORDS)
    shown = {(event.step, value.tag): value.simple_value for event in events(tmp_path) for value in event.summary.value}
    expected = {(step, f"{split}/{name}"): value for step, split, values in RECORDS for name, value in values.items()}
    assert shown.keys() == expected.keys()
    for key, value in expected.items():
        assert math.isclose(shown[key], value, rel_tol=2**-24), key  # event files hold float32


def test_tensorboard_drops_what_a_rerun_will_do_again(tmp_path: Path) -> None:
    write(tmp_path, 0, *RECORDS)
    write(tmp_path, 4, (6, "train", {"loss": 4.0}))
    # TensorBoard forgets the steps from a restart's on.
    restarts = [event.step for event in events(tmp_path) if event.session_log.status == event.session_log.START]
    assert restarts[-1] == 5


GOOD = b"".join(json.dumps(record).encode() + b"\n" for record in as_lines(*RECORDS))
DAMAGE = {
    "empty": (b"", 0, False),
    "cut": (GOOD[:-9], 3, False),
    "a line that is other JSON": (b'[]\n"x"\n7\nnull\n' + GOOD, 4, True),
    "brackets in brackets": (b"[" * 100_000 + b"\n" + GOOD, 4, True),
    "a line without a step": (b'{"split": "train"}\n' + GOOD, 4, True),
    "a step that is no number": (b'{"split": "train", "step": "2"}\n{"split": "eval", "step": true}\n' + GOOD, 4, True),
    "NUL bytes in the middle": (GOOD[:50] + b"\0" * 20 + GOOD[50:], 3, True),
    "NUL bytes at the end": (GOOD + b"\0" * 20, 4, False),
    "NUL bytes alone": (b"\0" * 100 + b"\n", 0, True),
    "UTF-16": (GOOD.decode().encode("utf-16"), 0, True),
    "Latin-1": (GOOD.replace(b"loss", b"l\xf6ss", 1), 3, True),
    "line ends of another system": (b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n"), 4, False),
    "empty lines": (GOOD.replace(b"\n", b"\n\n"), 4, False),
}


@pytest.mark.parametrize(("content", "kept", "warns"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_metrics(content: bytes, kept: int, warns: bool, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(content)
    expects = pytest.warns(UserWarning, match=r"metrics\.jsonl: \d+ damaged line\(s\) are left out; a copy ")
    with expects if warns else contextlib.nullcontext():
        write(tmp_path, 8, (9, "train", {"loss": 4.0}))
    assert len(lines(tmp_path)) == kept + 1
    assert all(line in [*as_lines(*RECORDS), *as_lines((9, "train", {"loss": 4.0}))] for line in lines(tmp_path))
    copy = tmp_path / "damaged" / "metrics.jsonl"
    assert (copy.read_bytes() if copy.exists() else None) == (content if warns else None)


@pytest.mark.filterwarnings("ignore:.* damaged line")
def test_metrics_damaged_twice(tmp_path: Path) -> None:
    for content in (b"first\n", b"second\n"):
        (tmp_path / "metrics.jsonl").write_bytes(content)
        write(tmp_path, 0)
    copies = sorted((tmp_path / "damaged").iterdir())
    assert [path.read_bytes() for path in copies] == [b"first\n", b"second\n"]


def test_no_place_for_damaged_metrics(tmp_path: Path) -> None:
    (tmp_path / "damaged").touch()
    (tmp_path / "metrics.jsonl").write_bytes(b"7\n")
    with pytest.raises(InputError, match=rf"^{tmp_path}/damaged: must be a folder; move it away to go on$"):
        MetricWriter(tmp_path, 0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"7\n"


def test_metrics_that_are_no_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match=rf"^{tmp_path}/metrics.jsonl: must be a file; move it away to go on$"):
        MetricWriter(tmp_path, 0)


def test_a_full_disk_ends_the_run_and_the_next_goes_on(tmp_path: Path) -> None:
    with MetricWriter(tmp_path, 0) as writer, largest_file(70):
        writer.write(*RECORDS[0])
        with pytest.raises(InputError, match=rf"^{tmp_path}/metrics.jsonl: could not be written: File too large$"):
            writer.write(*RECORDS[1])
    write(tmp_path, 2, RECORDS[1])
    assert lines(tmp_path) == as_lines(*RECORDS[:2])


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("damage", ["no folder", "full disk at the start", "full disk later"])
def test_event_files_only_warn(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if damage == "no folder":
        (tmp_path / "tensorboard").write_text("")
    if damage == "full disk at the start":
        monkeypatch.setattr(EventsWriter, "__init__", full)

    def run() -> None:
        with MetricWriter(tmp_path, 0) as writer:
            writer.write(*RECORDS[0])
            if damage == "full disk later":
                monkeypatch.setattr(EventsWriter, "write_event", full)
            for _ in range(20):  # tensorboardX alone would wait forever after ten
                writer.write(*RECORDS[1])

    with pytest.warns(UserWarning, match=rf"^{tmp_path}/tensorboard: no more TensorBoard events: ") as caught:
        run()
    assert [warning.category for warning in caught].count(UserWarning) == 1
    assert len(lines(tmp_path)) == 21


def test_a_writer_brings_no_pytorch(tmp_path: Path) -> None:
    """tensorboardX imports PyTorch where it is installed; a later import by others must still find it."""
    (tmp_path / "torch.py").write_text("print('PyTorch')")
    script = "import train.tensorboard; print('writer'); import torch"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["writer", "PyTorch"]
