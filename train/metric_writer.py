"""Writes metrics to `metrics.jsonl` and TensorBoard."""

import json
import shutil
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

from twins_jax.errors import InputError, one_line
from twins_jax.files import staged, write_text

from .tensorboard import TensorBoard
from .workdir import METRICS, check_file, new_damaged


class MetricWriter:
    """Appends metrics to WORKDIR/metrics.jsonl and to TensorBoard event files in WORKDIR/tensorboard.

    A context manager. Lines of steps after `start_step` are dropped first: a run that was cut off had gone beyond the
    checkpoint from which this one goes on, and repeats those steps. Of a file with more damage than a cut last line,
    the good lines are kept, with a warning, and a copy goes to WORKDIR/damaged, beside those of earlier damage.

    Raises:
        InputError: metrics.jsonl cannot be read or written, then or later. Event files that fail only warn.
    """

    def __init__(self, workdir: Path, start_step: int) -> None:
        self._path = workdir / METRICS
        check_file(self._path)
        if self._path.exists():
            _keep_lines_until(self._path, start_step)
        try:
            self._file = self._path.open("ab", buffering=0)  # each line is written at once, and none is left to close
        except OSError as error:
            raise self._failure(error) from error
        self._tensorboard = TensorBoard(workdir / "tensorboard", start_step)

    def write(self, step: int, split: str, values: dict[str, float | int]) -> None:
        """Writes a line {"step": ..., "split": ..., **values}, and a TensorBoard scalar `split/name` for each value."""
        line = json.dumps({"step": step, "split": split, **values}) + "\n"
        try:
            written = self._file.write(line.encode())
            if written != len(line):  # a disk that is almost full takes a part
                self._file.write(line.encode()[written:])
        except OSError as error:
            raise self._failure(error) from error
        self._tensorboard.write(step, {f"{split}/{name}": value for name, value in values.items()})

    def _failure(self, error: OSError) -> InputError:
        return InputError(f"{self._path}: could not be written: {error.strerror}")

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._tensorboard.close()


def _keep_lines_until(path: Path, step: int) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from error
    *lines, last = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")  # some editors put a mark at the beginning
    records = [(line, _step(line)) for line in lines if line.strip()]
    damaged = sum(found is None for _, found in records)
    if damaged:
        copy = new_damaged(path.parent, path.name)
        with staged(copy) as aside:
            shutil.copyfile(path, aside)
        warnings.warn(f"{path}: {damaged} damaged line(s) are left out; a copy of the file is {copy}", stacklevel=3)
    records.append((last, _step(last)))  # it was being written when the run was cut off
    kept = [line.strip().decode() + "\n" for line, found in records if found is not None and found <= step]
    write_text(path, "".join(kept))


def _step(line: bytes) -> int | None:
    """Returns the step of a line, or None of one that no run has written."""
    try:
        record: Any = json.loads(line.decode())
    except (ValueError, RecursionError):  # no UTF-8 or no JSON; brackets in brackets
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return step if type(step) is int and isinstance(record.get("split"), str) else None
