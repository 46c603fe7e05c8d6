"""A trace of a few training steps."""

import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from twins_jax.errors import one_line


class Profiler:
    """Traces the steps `FIRST` to `LAST` after the start of a run, or as many as it has, into WORKDIR/profile.

    A context manager; leaving it ends a trace that is under way. A trace that fails warns and leaves the run alone.

    Attributes:
        failure: the reason for which no trace was written, or "".
    """

    FIRST, LAST = 6, 10  # the first steps still allocate and fill the input queues

    def __init__(self, workdir: Path, start: int, *, enabled: bool) -> None:
        self._folder = workdir / "profile"
        self._start = start
        self._enabled = enabled
        self._tracing = False
        self.failure = ""

    def before(self, step: int) -> None:
        """Starts the trace before its first step; to be called before each step."""
        if self._enabled and step - self._start == self.FIRST:
            try:
                jax.profiler.start_trace(str(self._folder))
                self._tracing = True
            except Exception as error:
                self._fail(error)

    def after(self, step: int, metrics: Any) -> None:
        """Ends the trace after its last step, whose metrics it waits for; to be called after each step."""
        if self._tracing and step - self._start == self.LAST:
            jax.block_until_ready(metrics)
            self._stop()

    def _stop(self) -> None:
        if self._tracing:
            self._tracing = False
            try:
                jax.profiler.stop_trace()
            except Exception as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.failure = f"{self._folder} could not be written: {one_line(error)}"
        warnings.warn(self.failure, stacklevel=3)

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
