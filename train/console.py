"""The output of a run, whose loss does not end it."""

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from twins_jax.ending import drop


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Lets prints go nowhere once stdout or stderr fails: a closed terminal, `| head`, a full disk under a log file.

    A warning takes one line. Libraries print nothing beside the exceptions that they raise: Orbax's threads would print
    hundreds of lines about one failed write.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with (
        contextlib.redirect_stdout(_Lasting(sys.stdout)),
        contextlib.redirect_stderr(_Lasting(sys.stderr)),
    ):
        format_before, hook_before = warnings.formatwarning, sys.unraisablehook

        def on_one_line(
            message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
        ) -> str:
            if category is UserWarning:
                return f"warning: {message}\n"
            return format_before(message, category, filename, lineno, line)

        warnings.formatwarning, sys.unraisablehook = on_one_line, lambda _: None
        try:
            yield
        finally:
            warnings.formatwarning, sys.unraisablehook = format_before, hook_before


class _Lasting:
    """A text stream; None stands for one that was closed before Python started."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream or io.StringIO()

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
