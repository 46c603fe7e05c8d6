"""The one exception for input that a caller can correct, and the wording of messages."""

import difflib
import itertools
from collections.abc import Collection, Iterable, Mapping

import numpy as np

MAX_INT = 2**31 - 1
"""The largest count that enters a model: sizes of axes are int32 on devices."""


class InputError(ValueError):
    """An argument or a file is not what it must be.

    The message is one line that names the argument or file, what was found and what is allowed; lists of names may
    follow on lines of their own. Command lines print it and exit with code 2 instead of showing a traceback.
    """


class OtherKindError(InputError):
    """The weights are of another kind of model than the loader's, such as a classifier's where a detector's must be."""


def require(field: str, value: object, ok: bool, allowed: str) -> None:
    """Raises InputError that names an argument, its value, cut to 300 characters, and what it must be, unless `ok`."""
    if not ok:
        try:
            text = " ".join(repr(value).split())  # arrays and modules show themselves in many lines
        except ValueError:  # an integer of more digits than Python shows
            text = f"<{type(value).__name__}>"
        raise InputError(f"{field}={text if len(text) <= 300 else text[:300] + '...'}: must be {allowed}")


def is_integer(value: object, least: int, most: int = MAX_INT) -> bool:
    """True for an integer of Python or NumPy from `least` to `most`; a bool is none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and least <= int(value) <= most


def is_number(value: object) -> bool:
    """True for an integer or a floating-point number of Python or NumPy; a bool is none."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def did_you_mean(word: object, known: Iterable[str] | Mapping[str, str], most: int = 1) -> str:
    """Returns "; did you mean X?", to end a message, for the known words most like a wrong one; "" if none is like it.

    Args:
        word: the wrong one.
        known: known words; or known word -> the way to write it in the answer.
        most: words in the answer, joined by "or".
    """
    nearest = difflib.get_close_matches(str(word), known, n=most)
    written = [known[name] if isinstance(known, Mapping) else name for name in nearest]
    return f"; did you mean {' or '.join(written)}?" if written else ""


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
