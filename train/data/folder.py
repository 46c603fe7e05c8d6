"""A data set stored as one folder per class (ImageFolder)."""

import os
from pathlib import Path

import numpy as np

from twins_jax.errors import InputError

from .records import Record

# torchvision.datasets.folder.IMG_EXTENSIONS: both see the same files.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class FolderSource:
    """The images of one split: `ROOT/train/CLASS/*`, or `ROOT/val/CLASS/*` (`ROOT/test/CLASS/*` without a val/).

    Labels are positions in the sorted names of train's class folders, for both splits; files are sorted within their
    class. Files with another extension than `EXTENSIONS` (in any case) and hidden ones are left out.

    Raises:
        InputError: a folder is missing, a split has no class folder, a class folder has no image, or the evaluation
            split has a class that train has not.
    """

    def __init__(self, root: str | Path, *, train: bool):
        train_dir = Path(root) / "train"
        self.class_names = tuple(_class_folders(train_dir))
        self._dir = train_dir if train else _eval_dir(Path(root))
        classes = set(self.class_names if train else _class_folders(self._dir))
        if unknown := sorted(classes - set(self.class_names)):
            raise InputError(f"{self._dir / unknown[0]}: class {unknown[0]!r} is not among the classes of {train_dir}")

        # Millions of str objects would take hundreds of megabytes, in each worker process too: the names are kept in
        # one bytes object with their ends, and the labels as the index at which each class starts.
        names: list[bytes] = []
        starts = []
        for name in self.class_names:
            starts.append(len(names))
            if name in classes:
                names += _image_files(self._dir / name)
        self._names = b"".join(names)
        self._name_ends = np.cumsum([0, *map(len, names)], dtype=np.int64)
        self._class_starts = np.asarray(starts, np.int64)

    def __len__(self) -> int:
        return len(self._name_ends) - 1

    def __getitem__(self, index: int) -> Record:
        # "right" passes over classes without files, which start where the next class does.
        label = int(np.searchsorted(self._class_starts, index, side="right")) - 1
        begin, end = self._name_ends[index], self._name_ends[index + 1]
        path = self._dir / self.class_names[label] / os.fsdecode(self._names[begin:end])
        try:
            image = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        return {"image": image, "label": label, "name": str(path)}


def _eval_dir(root: Path) -> Path:
    for name in ("val", "test"):
        if (root / name).is_dir():
            return root / name
    raise InputError(f"{root}: holds neither val/ nor test/: must hold the evaluation images in one of them")


def _class_folders(split_dir: Path) -> list[str]:
    if not split_dir.is_dir():
        raise InputError(f"{split_dir}: no such folder: must hold one folder of images per class")
    with os.scandir(split_dir) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    if not names:
        raise InputError(f"{split_dir}: holds no folder: must hold one folder of images per class")
    return names


def _image_files(class_dir: Path) -> list[bytes]:
    # By extension only: asking whether an entry is a file costs a system call for each symbolic link.
    with os.scandir(class_dir) as entries:
        names = [entry.name for entry in entries if entry.name.lower().endswith(EXTENSIONS)]
    files = sorted(os.fsencode(name) for name in names if not name.startswith("."))
    if not files:
        raise InputError(f"{class_dir}: holds no image; extensions are {' '.join(EXTENSIONS)}")
    return files
