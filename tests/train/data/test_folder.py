import contextlib
import errno
import functools
import os
import pickle
import re
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.classification import make_task
from train.data.folder import FolderSource
from train.task import DatasetInfo
from train.tasks.classification.config import ClassificationDataConfig
from twins_jax.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:.*(entries left out|has no folder)")
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


def make(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    return root


def places(source: FolderSource) -> list[tuple[str, int]]:
    """Paths and labels, also of links that lead nowhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.data.folder.read_image", bytes)
        return [(os.fsdecode(source[i]["image"]), source[i]["label"]) for i in range(len(source))]


def test_found_as_by_torchvision(torchvision: ModuleType, tmp_path: Path) -> None:
    """Nested folders, whose order is that of their paths; links; names in other alphabets, and in none."""
    folders = "a", "a-b", "a/b", "a b", "A", "é", "\U0001f600", "\uffee", "\udcff\udcfe", "d.jpg"
    names = [f"{folder}/x{end}" for folder in folders for end in (".JPG", ".Tiff")]
    make(tmp_path / "other", "linked.png", "deep/linked.png")
    make(tmp_path / "train", "one/b.jpeg", "two/b.png", *(f"{c}/{name}" for c in ("one", "two") for name in names))
    make(tmp_path / "train", "one/desktop.ini", "one/Thumbs.db", "one/a/x.gif", "one/a/x.txt", "\udce9t\udce9/x.png")
    (tmp_path / "train/one/link").symlink_to(tmp_path / "other")
    (tmp_path / "train/three").symlink_to(tmp_path / "other")
    (tmp_path / "train/two/link.webp").symlink_to("a/x.JPG")
    (tmp_path / "train/two/gone.webp").symlink_to("nowhere")
    with pytest.warns(UserWarning, match=r"train: entries left out: 4, the first .*/train/one/"):
        source = FolderSource(tmp_path, train=True)
    theirs = torchvision.datasets.ImageFolder(str(tmp_path / "train"))
    assert source.class_names == tuple(theirs.classes)
    assert places(source) == theirs.samples


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.png", "train/a/._1.png", "train/a/.cache/2.png", "train/a/b/3.gif", "train/4.png")
    os.mkfifo(tmp_path / "train/a/5.png")
    with pytest.warns(UserWarning, match=r"train: entries left out: 5, the first .*/train/4.png \(in no class"):
        assert len(FolderSource(tmp_path, train=True)) == 1


def test_links_in_circles_end(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.png", "train/b/2.png")
    (tmp_path / "train/a/self").symlink_to(".")
    (tmp_path / "train/a/up").symlink_to("..")
    (tmp_path / "train/b/other").symlink_to("../a")
    (tmp_path / "train/b/loop.jpg").symlink_to("loop.jpg")
    with pytest.warns(UserWarning, match="a link to a folder that it is in"):
        source = FolderSource(tmp_path, train=True)
    found = [path.removeprefix(f"{tmp_path}/train/") for path, _ in places(source)]
    # a/up is train itself, whose a/ is one that the path is in already, and whose b/ is not.
    assert found == ["a/1.png", "a/up/b/2.png", "a/up/b/loop.jpg", "b/2.png", "b/loop.jpg", "b/other/1.png"]


def test_one_class_and_many(tmp_path: Path) -> None:
    make(tmp_path, *(f"train/{number:04}/1.png" for number in range(2000)), "val/0007/1.png")
    source = FolderSource(tmp_path, train=True)
    assert (len(source), source[1999]["label"]) == (2000, 1999)
    with pytest.warns(UserWarning, match=r"val: has no folder for 1999 of the 2000 classes of train, the first '0000'"):
        assert FolderSource(tmp_path, train=False)[0]["label"] == 7
    assert FolderSource(make(tmp_path / "one", "train/a/1.png"), train=True).class_names == ("a",)


@pytest.mark.parametrize(
    ("files", "train", "message"),
    [
        (("a/1.png", "b/1.png"), True, "train: no such folder: must .* class; .* holds a/, b/$"),
        (
            ("Train/a/1.png", "x", "y", "z", "zz", "zzz"),
            True,
            "no such folder: .* holds Train/, x, y, z, zz and 1 more$",
        ),
        (("train/a/1.png", "validation/a/1.png"), False, "neither val/ nor test/: .* holds train/, validation/$"),
        (("val/a/1.png",), False, "train: no such folder: .* holds val/$"),
        ((), True, "root is no folder$"),
    ],
)
def test_what_a_folder_without_the_split_holds(
    tmp_path: Path, files: tuple[str, ...], train: bool, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        FolderSource(make(tmp_path / "root", *files), train=train)


@pytest.mark.parametrize("folder", ["train", "train/zebra"])
def test_folder_that_cannot_be_read(root: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(path: str | Path) -> Any:
        if str(path).rstrip("/") == str(root / folder):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match=rf"^{re.escape(str(root / folder))}/?: cannot be read: Permission denied$"):
        FolderSource(root, train=True)


def test_file_that_cannot_be_read(root: Path) -> None:
    source = FolderSource(root, train=True)
    (root / "train/cat/c.png").unlink()
    with pytest.raises(InputError, match=re.escape(f"{root / 'train/cat/c.png'}: cannot be read: No such file")):
        source[1]


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "socket"])
def test_link_to_what_is_no_file(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listed, for each link would cost a system call, and refused at once when read."""
    link = make(tmp_path, "train/a/1.png") / "train/a/zz.jpg"
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    link.symlink_to({"device": "/dev/null"}.get(kind, str(tmp_path / kind)))
    source = FolderSource(tmp_path, train=True)
    if kind == "folder":
        (tmp_path / kind).mkdir()  # after the listing, which would look into it
    reason = {"folder": "cannot be read: Is a directory", "socket": "cannot be read: .+"}.get(
        kind, f"is a {kind}; must be a regular file"
    )
    monkeypatch.setattr(os, "open", functools.partial(open_at_once, os.open))
    with pytest.raises(InputError, match=f"^{re.escape(str(link))}: {reason}$"):
        source[1]


def open_at_once(system_open: Callable[..., int], path: Any, flags: int, *arguments: Any) -> int:
    assert flags & os.O_NONBLOCK  # or the test would wait for a writer of the pipe
    return system_open(path, flags, *arguments)
