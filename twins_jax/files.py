"""Writes files and folders that appear complete or not at all."""

import contextlib
import errno
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twins_jax.errors import InputError, one_line


@contextlib.contextmanager
def staged(target: str | os.PathLike[str]) -> Iterator[str]:
    """Gives a path to write to beside the target, and renames what was written to the target if all went well.

    A process that is killed leaves a folder beside the target, hidden and of the target's name. Nothing reads it, and
    nothing removes it: it could be of another process that still writes.

    Args:
        target: file or folder, which is replaced where it exists; what a symbolic link points to, and not the link.

    Raises:
        InputError: writing fails, and the target is then as it was; or the target is a device or pipe.
    """
    given, target = os.fspath(target), os.path.realpath(target)
    if os.path.lexists(target) and not (os.path.isfile(target) or os.path.isdir(target)):
        raise InputError(f"{given}: must be a file or a folder, or a new name")
    parent, name = os.path.split(target)
    aside = ""
    try:
        aside = tempfile.mkdtemp(prefix=f".{name}.", dir=parent)  # the same file system, where renaming is atomic
        written, replaced = os.path.join(aside, "new", name), os.path.join(aside, "old")
        os.mkdir(os.path.dirname(written))
        yield written
        if os.path.isdir(target):  # a folder cannot be renamed onto another
            os.rename(target, replaced)
        try:
            os.replace(written, target)
        except OSError:
            if os.path.lexists(replaced):
                os.rename(replaced, target)
            raise
    except InputError:
        raise
    except Exception as error:  # a full disk is an OSError, a RuntimeError, a ValueError or of the library's own kind
        raise InputError(f"{given}: could not be written: {storage_failure(error) or one_line(error)}") from error
    finally:
        if aside:
            _remove(aside)


def _remove(folder: str) -> None:
    """Removes a folder into which a library's threads may still write after an error, as Orbax's do."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return
        time.sleep(0.05)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file in UTF-8, complete or not at all.

    Raises:
        InputError: the file cannot be written; an older one is then as it was.
    """
    with staged(path) as aside:
        Path(aside).write_text(text, encoding="utf-8")


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a file that holds one JSON object in UTF-8.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    return parse_object(read_text(path), str(path))


def read_text(path: str | os.PathLike[str]) -> str:
    """Reads a text file in UTF-8.

    Raises:
        InputError: it cannot be read, or is no text in UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")  # some editors put a byte order mark first
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text in UTF-8: {one_line(error)}") from error


def parse_object(text: str, place: str) -> dict[str, Any]:
    """Reads one JSON object.

    Args:
        text: all of it.
        place: the file, for errors.

    Raises:
        InputError: the text is no JSON, or stands for something else.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # the second of brackets in brackets
        raise InputError(f"{place}: is no JSON: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise InputError(f"{place}: must hold a JSON object, holds {type(value).__name__}")
    return value


def require_regular(path: str | os.PathLike[str], mode: int) -> None:
    """Raises InputError for a pipe, a device or a folder: to read it could wait forever, or never end.

    Args:
        path: for the error.
        mode: as `os.stat` or `os.fstat` gives it.
    """
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "a device")
        raise InputError(f"{os.fspath(path)}: is {kind}; must be a regular file")


_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


def storage_failure(error: BaseException) -> str:
    """Returns one line on a file system that is full, broken or closed to us, if that caused an exception, or else "".

    Libraries wrap the system's error in their own, some of them as text alone.
    """
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, OSError) and cause.errno in _STORAGE_FAILURES:
            return f"{cause.filename}: {cause.strerror}" if cause.filename else f"{cause.strerror}"
        for number in _STORAGE_FAILURES:
            if os.strerror(number) in str(cause):
                return os.strerror(number)
        cause = cause.__cause__ or cause.__context__
    return ""


_STORAGE_FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)
