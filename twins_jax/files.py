"""Writes files and folders that appear complete or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from twins_jax.errors import InputError, one_line


@contextlib.contextmanager
def staged(target: str | os.PathLike[str]) -> Iterator[str]:
    """Gives a path to write to beside the target, and renames what was written to the target if all went well.

    Args:
        target: file or folder, which is replaced where it exists.

    Raises:
        InputError: writing fails; the target is then as it was.
    """
    parent, name = os.path.split(os.path.abspath(target))
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
        raise InputError(f"{os.fspath(target)}: could not be written: {one_line(error)}") from error
    finally:
        if aside:
            shutil.rmtree(aside, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file in UTF-8, complete or not at all.

    Raises:
        InputError: the file cannot be written; an older one is then as it was.
    """
    with staged(path) as aside:
        Path(aside).write_text(text, encoding="utf-8")
