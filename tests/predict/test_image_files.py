import os
from pathlib import Path

import pytest

from twins_jax.errors import InputError
from twins_jax.image_files import find_images


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files without content, and links."""
    for name in ("b.jpg", "a.JPEG", "text.txt", ".hidden.png", "d/z.webp", "d/e/y.tif", ".git/x.png", "[1]/w.bmp"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "photos" / "d" / "up").symlink_to("..")
    (tmp_path / "photos" / "linked.png").symlink_to("b.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def test_folders(folder: Path) -> None:
    expected = [folder / name for name in ("a.JPEG", "b.jpg", "linked.png", "[1]/w.bmp", "d/z.webp", "d/e/y.tif")]
    assert find_images([str(folder)]) == [str(path) for path in expected]
    assert find_images(["photos/d"]) == [
        "photos/d/z.webp",
        "photos/d/e/y.tif",
        *(f"photos/d/up/{name}" for name in ("a.JPEG", "b.jpg", "linked.png", "[1]/w.bmp")),
    ]


def test_files_and_patterns(folder: Path) -> None:
    (folder / "d" / "up").unlink()  # patterns of Python's follow it as often as the system allows
    assert find_images(["photos/text.txt", "photos/b.jpg", "photos/text.txt"]) == [
        "photos/text.txt", "photos/b.jpg", "photos/text.txt",
    ]  # fmt: skip
    assert find_images(["photos/*.jp*"]) == ["photos/b.jpg"]
    assert find_images(["photos/[ad]*"]) == ["photos/a.JPEG", *find_images(["photos/d"])]
    assert find_images(["photos/**/[y-z].*"]) == ["photos/d/e/y.tif", "photos/d/z.webp"]
    assert find_images(["photos/**"]) == find_images(["photos", "photos/text.txt"])  # folders and what is in them
    (folder / "d2").symlink_to("d")
    assert find_images(["photos/d*"]) == find_images(["photos/d"])
    (folder / "empty").mkdir()
    assert find_images(["photos/[be]*"]) == ["photos/b.jpg"]
    assert find_images(["photos/[1]"]) == ["photos/[1]/w.bmp"]  # a name that looks like a pattern


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("", "IMAGE='': must be the path of a file or folder"),
        ("s3://bucket/*.jpg", "IMAGE='s3://bucket/*.jpg': must be a path on this machine"),
        ("photos/no.jpg", "photos/no.jpg: no such file or folder\n"),
        ("photos/*.gif", "photos/*.gif: no such file or folder, and no match"),
        ("photos/.git/..x", "photos/.git/..x: no such file or folder"),
        ("photos/b.jpg/c.jpg", "IMAGE='photos/b.jpg/c.jpg': must be a path that can be used: Not a directory"),
        ("photos/em*", "photos/em*: holds no image; extensions are .jpg .jpeg .png"),
        ("photos/empty", "photos/empty: holds no image; extensions are .jpg .jpeg .png"),
    ],
)
def test_refused(folder: Path, argument: str, message: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        find_images(["photos/b.jpg", argument])
    assert f"{caught.value}\n".startswith(message)


def test_a_folder_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def closed(path: str) -> object:
        if path == "photos/d/e":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)  # root, who runs some of these tests, may read every folder
    with pytest.raises(InputError, match=r"^photos/d/e: cannot be read: Permission denied"):
        find_images([folder.name])
