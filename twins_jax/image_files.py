"""The image files that arguments of a command line mean."""

import glob
import itertools
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
            ones; or a pattern of Python's `glob`, "**" included, that matches any of these. A pattern that matches a
            folder and what is in it gives each file once.

    Raises:
        InputError: an argument is no path, nothing has its name or matches it, or a folder holds no image.
    """
    return [path for argument in arguments for path in _of_argument(argument)]


def _of_argument(argument: str) -> list[str]:
    path = source_path("IMAGE", argument)
    if path.exists():
        files = _of_path(path)
        if not files:
            raise _no_image(path)
        return files
    matches = sorted(glob.glob(str(path), recursive=True))
    if not matches:
        raise InputError(f"{argument}: no such file or folder{', and no match' * glob.has_magic(argument)}")
    found: dict[tuple[str, str], str] = {}
    for file in itertools.chain.from_iterable(_of_path(Path(match)) for match in matches):
        # "**" matches a folder, what is in it, and both once more through a link to a folder above.
        folder, name = os.path.split(file)
        found.setdefault((os.path.realpath(folder), name), file)
    if not found:
        raise _no_image(argument)
    return list(found.values())


def _of_path(path: Path) -> list[str]:
    return list(_below(path)) if path.is_dir() else [str(path)]


def _no_image(place: str | Path) -> InputError:
    return InputError(f"{place}: holds no image; extensions are {' '.join(EXTENSIONS)}")


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
