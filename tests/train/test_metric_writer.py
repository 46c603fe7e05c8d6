import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from train.metric_writer import MetricWriter


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
