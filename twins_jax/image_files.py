"""The image files that arguments of a command line mean."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from twins_jax.decode import EXTENSIONS
from twins_jax.errors import InputError
from twins_jax.paths import source_path


def find_images(arguments: list[str]) -> list[str]:
    """Returns the paths of images, in the order of the arguments, and sorted within each.

    Args:
        arguments: each a file of any name; a folder, of which all images in it and below it are taken, except hidden
            ones; or a pattern of Python's `glob`, "**" included, that matches any of these.

    Raises:
        InputError: an argument is no path, nothing has its name or matches it, or a folder holds no image.
    """
    return [path for argument in arguments for path in _of_argument(argument)]


def _of_argument(argument: str) -> list[str]:
    path = source_path("IMAGE", argument)
    if path.exists():
        return _of_path(path)
    matches = sorted(glob.glob(str(path), recursive=True))
    if not matches:
        raise InputError(f"{argument}: no such file or folder{', and no match' * glob.has_magic(argument)}")
    return [file for match in matches for file in _of_path(Path(match))]


def _of_path(path: Path) -> list[str]:
    if not path.is_dir():
        return [str(path)]
    found = list(_below(path))
    if not found:
        raise InputError(f"{path}: holds no image; extensions are {' '.join(EXTENSIONS)}")
    return found


def _below(root: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error

    visited: set[tuple[int, int]] = set()  # a link may lead to a folder that it is in
    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield os.path.join(folder, name)
