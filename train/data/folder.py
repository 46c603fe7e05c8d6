"""A data set stored as one folder per class (ImageFolder)."""

import dataclasses
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from twins_jax.decode import EXTENSIONS, read_image
from twins_jax.errors import InputError

from .packed import PackedPaths
from .records import Record


class FolderSource:
    """The images of one split: `ROOT/train/CLASS/**`, or `ROOT/val/CLASS/**` (`ROOT/test/CLASS/**` without a val/).

    Labels are positions in the sorted names of train's class folders, for both splits. Files are found and ordered as
    by torchvision.datasets.ImageFolder: in folders below a class too, through links, by their extension in any case.
    Two things differ: a link to a folder that it is in is not followed, and hidden files and folders are left out, for
    those of file managers and editors have the extensions of images. A warning counts all that is left out.

    Raises:
        InputError: a folder is missing or cannot be read, a split has no class folder, a class folder has no image, or
            the evaluation split has a class that train has not.
    """

    def __init__(self, root: str | Path, *, train: bool):
        left_out = LeftOut()
        train_dir = Path(root) / "train"
        self.class_names = tuple(_class_folders(train_dir, left_out if train else LeftOut()))
        self._dir = train_dir if train else eval_dir(Path(root))
        classes = set(self.class_names if train else _class_folders(self._dir, left_out))
        if unknown := sorted(classes - set(self.class_names)):
            raise InputError(f"{self._dir / unknown[0]}: class {unknown[0]!r} is not among the classes of {train_dir}")

        files: list[bytes] = []
        starts = []  # of the classes, in the place of a label for each file
        for name in self.class_names:
            starts.append(len(files))
            if name in classes:
                files += _image_files(str(self._dir / name), left_out)
        self._files = PackedPaths(files)
        self._class_starts = np.asarray(starts, np.int64)
        if left_out.count:
            warnings.warn(f"{self._dir}: entries left out: {left_out.count}, the first {left_out.first}", stacklevel=2)
        if missing := sorted(set(self.class_names) - classes):
            counts = f"{len(missing)} of the {len(self.class_names)} classes"
            warnings.warn(f"{self._dir}: has no folder for {counts} of train, the first {missing[0]!r}", stacklevel=2)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Record:
        # "right" passes over classes without files, which start where the next class does.
        label = int(np.searchsorted(self._class_starts, index, side="right")) - 1
        path = self._dir / self.class_names[label] / self._files[index]
        return {"image": read_image(path), "label": label, "name": str(path)}


def eval_dir(root: Path) -> Path:
    """Returns ROOT/val or ROOT/test; raises InputError if it is neither."""
    for name in ("val", "test"):
        if os.path.isdir(root / name):
            return root / name
    raise InputError(
        f"{root}: holds neither val/ nor test/: must hold the evaluation images in one of them; {contents(root)}"
    )


def _class_folders(split_dir: Path, left_out: "LeftOut") -> list[str]:
    if not os.path.isdir(split_dir):
        raise InputError(
            f"{split_dir}: no such folder: must hold one folder of images per class; {contents(split_dir.parent)}"
        )
    names = []
    for entry in folder_entries(split_dir):
        if _is_dir(entry) and not entry.name.startswith("."):
            names.append(entry.name)
        else:
            left_out.add(entry.path, "hidden" if entry.name.startswith(".") else "in no class folder")
    if not names:
        raise InputError(f"{split_dir}: holds no folder: must hold one folder of images per class")
    return sorted(names)


def _image_files(class_dir: str, left_out: "LeftOut") -> list[bytes]:
    """Returns the paths of the images in and below a class folder, relative to it, in torchvision's order."""
    files: list[str] = []
    for folder, names in sorted(_walk(class_dir, left_out), key=lambda found: found[0][:-1]):
        files += [folder + name for name in sorted(names)]
    if not files:
        raise InputError(f"{class_dir}: holds no image; extensions are {' '.join(EXTENSIONS)}")
    return [os.fsencode(file) for file in files]


def _walk(class_dir: str, left_out: "LeftOut") -> Iterator[tuple[str, list[str]]]:
    """Yields each folder in and below a class folder, as "" or "PATH/" from there, and the images in it."""
    to_visit: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]  # a folder, and those it is in
    while to_visit:
        folder, above = to_visit.pop()
        identity = _identity(os.path.join(class_dir, folder))
        if identity in above:
            left_out.add(os.path.join(class_dir, folder), "a link to a folder that it is in")
            continue
        names = []
        for entry in folder_entries(os.path.join(class_dir, folder)):
            name = entry.name
            if name.startswith("."):
                left_out.add(entry.path, "hidden")
            elif (is_file := entry.is_file(follow_symlinks=False)) and name.lower().endswith(EXTENSIONS):
                names.append(name)
            elif not is_file and _is_dir(entry):
                to_visit.append((f"{folder}{name}/", above | {identity}))
            elif not name.lower().endswith(EXTENSIONS):
                left_out.add(entry.path, "without the extension of an image")
            elif entry.is_symlink():
                names.append(name)
            else:
                left_out.add(entry.path, "not a file")  # reading a pipe would wait forever
        yield folder, names


@dataclasses.dataclass
class LeftOut:
    """The number of entries of folders that are not taken, and the first of them."""

    count: int = 0
    first: str = ""

    def add(self, path: str, why: str) -> None:
        self.count += 1
        self.first = self.first or f"{path} ({why})"


def folder_entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder, in no order; raises InputError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()  # costs a system call for a symbolic link only
    except OSError:  # a link to itself
        return False


def _identity(folder: str) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    return status.st_dev, status.st_ino


def contents(folder: Path) -> str:
    """Says what a folder holds, to show what may have another name or place than it should."""
    if not os.path.isdir(folder):
        return f"{folder} is no folder"
    names = sorted(entry.name + "/" * _is_dir(entry) for entry in folder_entries(folder))
    return f"{folder} holds {', '.join(names[:5]) or 'nothing'}" + (f" and {len(names) - 5} more" if names[5:] else "")
