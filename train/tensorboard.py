"""TensorBoard event files."""

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from twins_jax.errors import one_line


@contextlib.contextmanager
def _without_pytorch() -> Iterator[None]:
    """Hides PyTorch from imports. tensorboardX imports it where it can: 1.3 s of a start, for what is not used here."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


with _without_pytorch():
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar

FLUSH_SECONDS = 120
"""Time after which what was written reaches the file."""


class TensorBoard:
    """Writes scalars to a new event file. A file that cannot be written is given up, with a warning.

    A thread writes, so that a slow disk does not hold up the caller. tensorboardX's own thread would die of a full
    disk, and its caller then wait for it forever.

    Args:
        folder: made if missing.
        start_step: TensorBoard forgets later steps that older files in the folder hold.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        self._folder = folder
        self._file: EventsWriter | None = None
        self._next_flush = 0.0
        self._thread = ThreadPoolExecutor(1)
        start = Event(step=start_step + 1, wall_time=time.time(), session_log=SessionLog(status=SessionLog.START))
        self._submit(self._open)
        self._submit(lambda: self._append([start]))

    def write(self, step: int, values: dict[str, float | int]) -> None:
        """Writes a scalar for each value."""
        now = time.time()
        events = [Event(step=step, wall_time=now, summary=scalar(name, value)) for name, value in values.items()]
        self._submit(lambda: self._append(events))

    def close(self) -> None:
        """Waits for what is being written, and closes the file."""
        self._submit(self._close)
        self._thread.shutdown()

    def _submit(self, action: Callable[[], None]) -> None:
        def run() -> None:
            try:
                action()
            except Exception as error:
                warnings.warn(f"{self._folder}: no more TensorBoard events: {one_line(error)}", stacklevel=2)
                file, self._file = self._file, None
                if file:
                    with contextlib.suppress(OSError):  # closing fails once more
                        file.close()

        self._thread.submit(run)

    def _open(self) -> None:
        self._folder.mkdir(exist_ok=True)
        self._file = EventsWriter(str(self._folder / "events"))

    def _append(self, events: Sequence[Event]) -> None:
        if not self._file:
            return
        for event in events:
            self._file.write_event(event)
        if time.monotonic() > self._next_flush:
            self._file.flush()
            self._next_flush = time.monotonic() + FLUSH_SECONDS

    def _close(self) -> None:
        if self._file:
            self._file.close()
