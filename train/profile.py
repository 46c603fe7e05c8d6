"""A trace of a few training steps."""

from pathlib import Path
from typing import Any

import jax


class Profiler:
    """Traces the steps `FIRST` to `LAST` after the start of a run into WORKDIR/profile."""

    FIRST, LAST = 6, 10  # the first steps still allocate and fill the input queues

    def __init__(self, workdir: Path, start: int, *, enabled: bool) -> None:
        self._folder = workdir / "profile"
        self._start = start
        self._enabled = enabled

    def before(self, step: int) -> None:
        """To be called before each step."""
        if self._enabled and step - self._start == self.FIRST:
            jax.profiler.start_trace(str(self._folder))

    def after(self, step: int, metrics: Any) -> None:
        """To be called after each step with what it returned; waits for it at the end of the trace."""
        if self._enabled and step - self._start == self.LAST:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
