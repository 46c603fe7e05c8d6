"""Writes files and folders so that they appear complete or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from twins_jax.errors import InputError
from twins_jax.port.orbax_io import is_params
from twins_jax.port.text import one_line


def check_target(target: str, *, overwrite: bool) -> None:
    """Raises InputError where a target cannot be written, before any work is done for it.

    With `overwrite` files and Orbax folders of parameters may exist; no other folder is ever replaced.
    """
    parent = os.path.dirname(os.path.abspath(target))
    if not os.path.isdir(parent):
        raise InputError(f"{target}: its folder {parent} does not exist")
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise InputError(f"{target}: exists already, and is only overwritten with --overwrite")
    if os.path.isdir(target) and not is_params(target):
        raise InputError(f"{target}: is a folder that is no Orbax folder of parameters, and is never overwritten")


@contextlib.contextmanager
def staged(target: str, *, overwrite: bool = False) -> Iterator[str]:
    """Gives a path to write to beside the target; what is there is renamed to the target if all went well.

    Args:
        target: file or folder.
        overwrite: replace it where it exists.

    Raises:
        InputError: the target exists and `overwrite` is not set, or writing fails.
    """
    check_target(target, overwrite=overwrite)
    parent, name = os.path.split(os.path.abspath(target))
    aside = ""
    try:
        aside = tempfile.mkdtemp(prefix=f".{name}.", dir=parent)  # the same file system, so that renaming is atomic
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
    except Exception as error:  # a full disk is OSError, RuntimeError or ValueError, as the library that writes has it
        raise InputError(f"{target}: could not be written: {one_line(error)}") from error
    finally:
        if aside:
            shutil.rmtree(aside, ignore_errors=True)
