"""Ctrl-C while a command still imports its libraries, which takes a second. Imports none itself."""

import sys
from types import TracebackType


def end_in_one_line() -> None:
    """Lets Ctrl-C end this process in one line wherever nothing catches it, as `twins_jax.ending.command_line` does.

    Python then ends by SIGINT itself, which shells report as 130.
    """
    sys.excepthook = _say_interrupted


def _say_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("stopped by SIGINT\n")
    else:
        sys.__excepthook__(kind, error, trace)
