"""Paths as users give them: one place decides which of them are of use, for every argument that takes one."""

import os
import re
from pathlib import Path
from typing import Literal

from twins_jax.config import VARIANTS
from twins_jax.errors import InputError, require
from twins_jax.published import PUBLISHED, find_repository

HUB_PREFIX = "hf-hub:"
"""The prefix of names of Hugging Face repositories, as timm has it; they are read as weights, and written nowhere."""

MAX_NAME_BYTES = 255
"""The longest name of a file that Linux, macOS and Windows take."""

# "gs://bucket", also as pathlib shortens it, and "host:/path"; no drive of Windows ("C:/"), whose name is one letter.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9@.+_-]+):/|hf[-_]hub:")


def check_path(field: str, value: str | os.PathLike[str]) -> None:
    """Checks the text of a path, without a look at the disk.

    Raises:
        InputError: it is empty, holds a control character, a name of more than 255 bytes, or is a URL: checkpoints
            could be written to some of them, but metrics, locks and other files could not.
    """
    require(field, value, isinstance(value, str | os.PathLike), "text, or a pathlib.Path")
    text = os.fspath(value)
    require(field, value, isinstance(text, str), "text, not bytes")
    require(field, text, bool(text), "the path of a file or folder")
    require(field, text, not _URL.match(text), "a path on this machine: URLs are not read or written; mount or copy it")
    require(field, text, not any(ord(character) < 32 for character in text), "a path without control characters")
    longest = max(len(os.fsencode(name)) for name in text.split("/"))
    require(field, text, longest <= MAX_NAME_BYTES, f"made of names of at most {MAX_NAME_BYTES} bytes")


def source_path(field: str, value: str | os.PathLike[str]) -> Path:
    """Returns the path of a file or folder to read, with "~" replaced by the home folder. It may be missing.

    Raises:
        InputError: as `check_path`; or "~NAME" names no user, a file stands in the place of a folder, a link leads
            nowhere, or the path is one that the system refuses.
    """
    check_path(field, value)
    text = os.fspath(value)
    try:
        path = Path(text).expanduser() if text.startswith("~") else Path(text)  # which drops the "./" of "./~"
    except RuntimeError as error:  # no such user, or no home
        raise InputError(
            f"{field}={text!r}: must be a path: {str(error).rstrip('.')} (./~ begins the name of a file)"
        ) from error
    if str(path).startswith("~"):
        path = path.absolute()  # or a second reading would take it for a home
    try:
        path.lstat()
        leads_nowhere = path.is_symlink() and not path.exists()
    except FileNotFoundError:
        return path
    except OSError as error:  # no folder on the way to it, no right to look, too long
        raise InputError(f"{field}={str(path)!r}: must be a path that can be used: {error.strerror}") from error
    require(field, str(path), not leads_nowhere, "no link that leads nowhere")
    return path


def target_path(
    field: str, value: str | os.PathLike[str], kind: Literal["file", "folder", "either"] = "either"
) -> Path:
    """Returns the path of a file or folder to write, with "~" replaced by the home folder; makes nothing.

    Args:
        field: the argument, for messages.
        value: as given.
        kind: which of the two it must be where it exists. A "/" at the end makes it a folder.

    Raises:
        InputError: as `source_path`; or it is of another kind, or no UTF-8, which Orbax needs.
    """
    path = source_path(field, value)
    if kind == "file":
        is_file = not os.fspath(value).endswith("/") and bool(path.name) and (path.is_file() or not path.exists())
        require(field, str(path), is_file, "the path of a file, which may be a new one")
    elif kind == "folder":
        require(field, str(path), path.is_dir() or not path.exists(), "the path of a folder, which may be a new one")
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError:
        require(field, str(path), False, "a path in UTF-8, which checkpoints need: rename it, or use a link to it")
    return path


def weights_source(field: str, value: str | os.PathLike[str]) -> str:
    """Returns a source of weights: a local path as `source_path` does, or a repository's name with its prefix.

    Args:
        field: the argument, for messages.
        value: a path; `HUB_PREFIX` and a repository's name; or the name of a variant, with or without timm's tag, which
            stands for the repository of its published weights. A file or folder of that name wins over the variant.

    Raises:
        InputError: as `source_path`; or no weights of the variant are published.
    """
    if isinstance(value, str) and value.startswith(HUB_PREFIX):
        require(field, value, value.isprintable(), "a repository's name without control characters")
        return value
    path = source_path(field, value)
    if isinstance(value, str) and not path.exists():
        if (repository := find_repository(value)) is not None:
            return f"{HUB_PREFIX}{repository}"
        allowed = f"a file or folder, or a variant with published weights, one of {', '.join(PUBLISHED)}"
        require(field, value, value not in VARIANTS, allowed)
    return str(path)
