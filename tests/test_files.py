import errno
import os
from pathlib import Path
from typing import Any

import pytest

from twins_jax import InputError
from twins_jax.files import staged, write_text


@pytest.mark.parametrize("exists", [True, False])
def test_writes_through_symbolic_links(exists: bool, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    target, link, chain = tmp_path / "other" / "file", tmp_path / "link", tmp_path / "chain"
    link.symlink_to("other/file")
    chain.symlink_to(link)
    if exists:
        target.write_text("old")
    write_text(chain, "new")
    assert (chain.is_symlink(), link.is_symlink(), target.is_symlink()) == (True, True, False)
    assert target.read_text() == "new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["chain", "file", "link", "other"]


def test_replaces_a_folder_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    (tmp_path / "link").symlink_to("folder")
    with staged(tmp_path / "link") as aside:
        Path(aside).mkdir()
        (Path(aside) / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["new"]


def test_devices_and_pipes_are_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/null"), tmp_path / "pipe"):
        with pytest.raises(InputError, match=rf"^{path}: must be a file or a folder, or a new name$"):
            write_text(path, "x")
        assert not path.is_file()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("moment", ["mkdtemp", "write_text", "replace"])
def test_a_failed_write_leaves_the_older_file(
    number: int, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    target = tmp_path / "file"
    target.write_text("old")
    place = {"mkdtemp": "tempfile.mkdtemp", "write_text": "pathlib.Path.write_text", "replace": "os.replace"}[moment]
    with monkeypatch.context() as patch:
        patch.setattr(place, fail)
        with pytest.raises(InputError) as caught:
            write_text(target, "new")
    message = str(caught.value)
    assert message.startswith(f"{target}: could not be written: ")
    assert os.strerror(number) in message
    assert "\n" not in message
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
