"""The output of a run, whose loss does not end it."""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from twins_jax.ending import drop


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Lets prints go nowhere once stdout or stderr fails: a closed terminal, `| head`, a full disk under a log file.

    A warning takes one line.
    """
    with (
        contextlib.redirect_stdout(_Lasting(sys.stdout)),
        contextlib.redirect_stderr(_Lasting(sys.stderr)),
    ):
        format_before = warnings.formatwarning

        def on_one_line(
            message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
        ) -> str:
            if category is UserWarning:
                return f"warning: {message}\n"
            return format_before(message, category, filename, lineno, line)

        warnings.formatwarning = on_one_line
        try:
            yield
        finally:
            warnings.formatwarning = format_before


class _Lasting:
    """A text stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError:
            drop(self._stream)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            drop(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
