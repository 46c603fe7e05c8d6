"""The end of a command line: one line and an exit code, where the caller can do something about it."""

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, ParamSpec

from twins_jax.errors import InputError
from twins_jax.files import storage_failure

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE

P = ParamSpec("P")


def command_line(main: Callable[P, int]) -> Callable[P, int]:
    """Makes a `main` return an exit code, after one line on stderr, for errors that the caller can correct.

    2 for an InputError and for a disk that takes no more; 130 for Ctrl-C; 141, silently, where nobody reads stdout any
    longer (`| head`). Characters that stdout cannot encode are printed as escapes.
    """

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            try:
                return main(*args, **kwargs)
            finally:
                if sys.stdout:
                    sys.stdout.flush()  # raises here and not when Python ends, which would print a traceback
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends the process without more words
            say("stopped by SIGINT")
            return EXIT_INTERRUPTED
        except BrokenPipeError:
            drop(sys.stdout)
            return EXIT_BROKEN_PIPE
        except InputError as error:
            say(f"error: {error}")
            return EXIT_BAD_INPUT
        except Exception as error:
            if failure := storage_failure(error):
                say(f"error: {failure}")
                return EXIT_BAD_INPUT
            raise

    return run


def say(line: str) -> None:
    """Prints a line on stderr, if anybody still listens there."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        drop(sys.stderr)


def drop(stream: Any) -> None:
    """Lets a stream that cannot be written end in nothing: Python would fail once more when it closes it."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # one without a file has nothing to fail
        number = stream.fileno()
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, number)
        os.close(nothing)
