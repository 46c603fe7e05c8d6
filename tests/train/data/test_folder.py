import contextlib
import os
import pickle
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.classification import make_task
from train.data.folder import FolderSource
from train.task import DatasetInfo
from train.tasks.classification.config import ClassificationDataConfig
from twins_jax.errors import InputError

scandir = os.scandir


@contextlib.contextmanager
def scandir_reversed(path: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    with scandir(path) as entries:
        yield iter(sorted(entries, key=lambda entry: entry.name, reverse=True))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "scandir", scandir_reversed)  # the system gives no order
    for name in (
        "train/zebra/b.JPG",
        "train/zebra/a.jpeg",
        "train/zebra/notes.txt",
        "train/zebra/._a.jpeg",
        "train/ant/ü.webp",
        "train/cat/c.png",
        "train/.hidden/x.png",
        "train/README.png",
        "val/cat/v.bmp",
        "val/zebra/w.Png",
        "test/ant/t.png",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def contents(source: FolderSource) -> list[tuple[str, int, bytes]]:
    records = [source[i] for i in range(len(source))]
    return [(r["name"], r["label"], r["image"]) for r in records]


def expected(root: Path, *files: tuple[str, int]) -> list[tuple[str, int, bytes]]:
    return [(str(root / name), label, name.encode()) for name, label in files]


def test_train(root: Path) -> None:
    source = FolderSource(root, train=True)
    assert source.class_names == ("ant", "cat", "zebra")
    files = ("train/ant/ü.webp", 0), ("train/cat/c.png", 1), ("train/zebra/a.jpeg", 2), ("train/zebra/b.JPG", 2)
    assert contents(source) == expected(root, *files)
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)
    with pytest.raises(IndexError):
        source[4]


def test_eval_is_val_with_the_labels_of_train(root: Path) -> None:
    source = FolderSource(root, train=False)
    assert source.class_names == ("ant", "cat", "zebra")
    assert contents(source) == expected(root, ("val/cat/v.bmp", 1), ("val/zebra/w.Png", 2))


def test_eval_is_test_without_val(root: Path) -> None:
    (root / "val").rename(root / "other")
    assert contents(FolderSource(root, train=False)) == expected(root, ("test/ant/t.png", 0))


def test_info(root: Path) -> None:
    info = make_task(ClassificationDataConfig(source="folder", dir=str(root))).info
    assert info == DatasetInfo(3, ("ant", "cat", "zebra"), train_examples=4, eval_examples=2)


def test_home_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    assert make_task(ClassificationDataConfig(source="folder", dir=f"~/{root.name}")).info.train_examples == 4


def test_small_in_memory(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    for i in range(2000):
        (tmp_path / "train" / "a" / f"n01440764_{i:05}.JPEG").touch()
    tracemalloc.start()
    try:
        source = FolderSource(tmp_path, train=True)
        allocated, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(source) == 2000
    assert allocated < 2000 * 40  # a list of str takes 77 bytes a name


@pytest.mark.parametrize("train", [True, False])
def test_missing_train_folder(tmp_path: Path, train: bool) -> None:
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'train'}: no such folder")):
        FolderSource(tmp_path, train=train)


def test_missing_eval_folder(root: Path) -> None:
    (root / "val").rename(root / "other")
    (root / "test").rename(root / "another")
    with pytest.raises(InputError, match=re.escape(f"{root}: holds neither val/ nor test/")):
        FolderSource(root, train=False)


def test_no_class(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "image.png").touch()
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'train'}: holds no folder")):
        FolderSource(tmp_path, train=True)


@pytest.mark.parametrize("split", ["train", "val"])
def test_class_without_images(root: Path, split: str) -> None:
    for path in (root / split / "cat").iterdir():
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(InputError, match=re.escape(f"{root / split / 'cat'}: holds no image")):
        FolderSource(root, train=split == "train")


def test_class_unknown_to_train(root: Path) -> None:
    (root / "val" / "cat").rename(root / "val" / "dog")
    with pytest.raises(InputError, match=re.escape(f"{root / 'val' / 'dog'}: class 'dog' is not among")):
        FolderSource(root, train=False)


def test_file_that_cannot_be_read(root: Path) -> None:
    source = FolderSource(root, train=True)
    (root / "train/cat/c.png").unlink()
    with pytest.raises(InputError, match=re.escape(f"{root / 'train/cat/c.png'}: cannot be read: No such file")):
        source[1]
