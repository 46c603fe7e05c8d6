"""The folder of a run: what must be writable in it, and its part for what is damaged."""

import itertools
import os
import tempfile
from pathlib import Path

from twins_jax.errors import InputError, one_line

CONFIG, DATASET, CHANGES = "config.json", "dataset.json", "config_changes.jsonl"
METRICS, CHECKPOINTS, DAMAGED = "metrics.jsonl", "checkpoints", "damaged"


def holds_checkpoint(workdir: Path) -> bool:
    """True if the folder of a run holds a checkpoint, readable or not."""
    return any(path.name.isdigit() for path in (workdir / CHECKPOINTS).glob("*"))


def check_writable(workdir: Path) -> None:
    """Checks that a run can write what is in its folder, and leaves the folder as it is.

    Args:
        workdir: exists, and can be written itself, as `train.lock` makes sure.

    Raises:
        InputError: a part of it is no folder or no file, or cannot be written.
    """
    for name in (CHECKPOINTS, DAMAGED):
        folder = workdir / name
        check_folder(folder)
        if folder.exists():
            try:
                try_to_write(folder)
            except OSError as error:
                raise InputError(f"{folder}: cannot be written: {error.strerror or one_line(error)}") from error
    for name in (CONFIG, DATASET):  # replaced, so their own permissions do not matter
        _check_kind(workdir / name)
    for name in (CHANGES, METRICS):
        check_file(workdir / name)


def check_folder(path: Path) -> None:
    """Raises InputError if something else is in the place of a folder."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: must be a folder; move it away to go on")


def check_file(path: Path) -> None:
    """Raises InputError if a file exists that cannot be read or written, or if something else is in its place."""
    _check_kind(path)
    if not path.exists():
        return
    try:
        path.open("r+b").close()
    except OSError as error:
        raise InputError(f"{path}: cannot be read and written: {error.strerror or one_line(error)}") from error


def _check_kind(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: must be a file; move it away to go on")


def try_to_write(folder: Path) -> None:
    """Makes and removes a folder in another.

    Orbax makes its folders in the background, and waits for minutes where that fails.

    Raises:
        OSError: it cannot be done.
    """
    os.rmdir(tempfile.mkdtemp(prefix=".write.", dir=folder))


def new_damaged(workdir: Path, name: str) -> Path:
    """Returns a path in WORKDIR/damaged, made if missing, that is free: NAME, NAME.1, NAME.2 or onward.

    Raises:
        InputError: the folder cannot be made.
    """
    folder = workdir / DAMAGED
    check_folder(folder)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror or one_line(error)}") from error
    names = itertools.chain([name], (f"{name}.{number}" for number in itertools.count(1)))
    return next(path for path in map(folder.joinpath, names) if not os.path.lexists(path))
