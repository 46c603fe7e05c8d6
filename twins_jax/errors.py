"""The one exception for input that a caller can correct, and the wording of messages."""

import itertools
from collections.abc import Collection


class InputError(ValueError):
    """An argument or a file is not what it must be.

    The message is one line that names the argument or file, what was found and what is allowed; lists of names may
    follow on lines of their own. Command lines print it and exit with code 2 instead of showing a traceback.
    """


def require(field: str, value: object, ok: bool, allowed: str) -> None:
    """Raises InputError that names an argument, its value and what it must be, unless `ok`."""
    if not ok:
        raise InputError(f"{field}={value!r}: must be {allowed}")


def one_line(error: BaseException) -> str:
    """Returns the first line with text of an exception's message, cut to 300 characters, or else its type's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def shown(name: str, limit: int = 100) -> str:
    """Returns a name as a message can show it: a name from a file may be of any length, or control a terminal."""
    cut = name if len(name) <= limit else f"{name[:limit]}..."
    return cut if cut.isprintable() else ascii(cut)


def shown_list(names: Collection[str], limit: int = 50) -> str:
    """Returns the first of some names, and how many more they are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shown(name) for name in itertools.islice(names, limit)) + more
