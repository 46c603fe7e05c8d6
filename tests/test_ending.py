import errno
import io
import os
import sys
from typing import NoReturn

import pytest

from twins_jax import InputError
from twins_jax.ending import command_line
from twins_jax.files import storage_failure

FULL = os.strerror(errno.ENOSPC)


@command_line
def fail(error: BaseException) -> NoReturn:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("x=1: must be 2"), 2, "error: x=1: must be 2\n"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT\n"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (OSError(errno.ENOSPC, FULL, "a/b"), 2, f"error: a/b: {FULL}\n"),
        (ValueError(f"OUT_OF_RANGE: writing x\n{FULL} [os_error_code='28']"), 2, f"error: {FULL}\n"),
    ],
)
def test_an_end_is_one_line_and_a_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail(error) == code
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize("error", [KeyError("x"), FileNotFoundError(errno.ENOENT, "No such file", "x"), SystemExit(7)])
def test_other_ends_are_not_hidden(error: BaseException) -> None:
    with pytest.raises(type(error)):
        fail(error)


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM]
)
def test_storage_failures_are_found_below_other_errors(number: int) -> None:
    cause = OSError(number, os.strerror(number))
    error = RuntimeError("cannot save")
    assert storage_failure(error) == ""
    error.__cause__ = cause
    assert storage_failure(error) == os.strerror(number)


@command_line
def print_name() -> int:
    print("Katze \udce4 ä")  # noqa: T201 - a name in Latin-1, and one that ASCII lacks
    return 0


def test_any_name_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert print_name() == 0
    assert raw.getvalue() == b"Katze \\udce4 \\xe4\n"


def test_a_closed_pipe_is_found_before_python_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert print_name() == 141  # the line is still in a buffer when `print` returns
