"""Writes metrics to `metrics.jsonl` and TensorBoard."""

import json
from pathlib import Path
from types import TracebackType

from tensorboardX import SummaryWriter

from twins_jax.files import write_text


class MetricWriter:
    """Appends metrics to WORKDIR/metrics.jsonl and to TensorBoard event files in WORKDIR/tensorboard.

    A context manager. Lines of steps after `start_step` are dropped first: a run that was cut off had gone beyond the
    checkpoint from which this one goes on, and repeats those steps.
    """

    def __init__(self, workdir: Path, start_step: int) -> None:
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            _keep_lines_until(self._path, start_step)
        self._file = self._path.open("a")
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, split: str, values: dict[str, float | int]) -> None:
        """Writes a line {"step": ..., "split": ..., **values}, and a TensorBoard scalar `split/name` for each value."""
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{split}/{name}", value, step)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._tensorboard.close()


def _keep_lines_until(path: Path, step: int) -> None:
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break  # the line that was being written when the run was cut off
        if record["step"] <= step:
            kept.append(line + "\n")
    write_text(path, "".join(kept))
