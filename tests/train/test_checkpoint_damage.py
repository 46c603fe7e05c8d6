"""Checkpoints that are damaged, and saves that fail."""

import errno
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
import pytest

from tests.support import runs
from tests.support.checkpoints import assert_is, data, kept, restore, save, state
from tests.support.disk import largest_file
from train.checkpoint import Checkpoints
from train.config import CheckpointConfig
from twins_jax import InputError


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def empty_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            empty(path)


def remove_all(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def largest(folder: Path) -> Path:
    """The file with the values; the others describe it."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


POSITION = "data/process_0-of-1.json"
NO_OBJECTS = (b"[]", b"7")
OTHER_CONTENT = {
    "a list": b"[]",
    "a number": b"7",
    "an object": b"{}",
    "of NUL bytes": b"\0" * 50,
    "of another encoding": '{"ä": 1}'.encode("utf-16"),
    "a folder": None,
}


def overwrite(folder: Path, name: str, content: bytes | None) -> None:
    path = folder / name
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "params truncated": lambda folder: truncate(largest(folder / "params")),
    "params with a wrong bit": lambda folder: flip_a_bit(largest(folder / "params")),
    "optimizer with a wrong bit": lambda folder: flip_a_bit(largest(folder / "opt_state")),
    "average with a wrong bit": lambda folder: flip_a_bit(largest(folder / "ema")),
    "params gone": lambda folder: shutil.rmtree(folder / "params"),
    "average gone": lambda folder: shutil.rmtree(folder / "ema"),
    "description gone": lambda folder: (folder / "params" / "_METADATA").unlink(),
    "index truncated": lambda folder: truncate(folder / "opt_state" / "manifest.ocdbt"),
    "position in the data empty": lambda folder: empty(folder / "data" / "process_0-of-1.json"),
    "metadata empty": lambda folder: empty(folder / "_CHECKPOINT_METADATA"),
    **{
        f"{name} {kind}": functools.partial(overwrite, name=name, content=content)
        for name in ("_CHECKPOINT_METADATA", POSITION, "params/_METADATA")
        for kind, content in OTHER_CONTENT.items()
        if name != "_CHECKPOINT_METADATA" or content not in NO_OBJECTS
    },
    "position in the data is other JSON": lambda folder: overwrite(
        folder, "data/process_0-of-1.json", b'{"next_index": "7"}'
    ),
    "all files empty": empty_all,
    "all files gone": remove_all,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_newest_is_reported_and_the_one_before_is_used(damage: Callable[[Path], None], workdir: Path) -> None:
    damage(workdir / "checkpoints" / "3")
    with pytest.warns(UserWarning, match=r"the checkpoint of step 3 cannot be read \(.+\): moved to .*/damaged/3$"):
        restored, position = restore(workdir)
    assert_is(restored, 2)
    assert position == 20
    assert kept(workdir) == [1, 2]
    assert (workdir / "damaged" / "3").is_dir()
    # The run goes on as if it had been cut off after step 2.
    assert save(workdir, {3: None}, keep=3) == [1, 2, 3]
    assert_is(restore(workdir)[0], 3)


def test_an_evaluation_moves_nothing(workdir: Path) -> None:
    (workdir / "checkpoints" / "3" / "_CHECKPOINT_METADATA").write_text("{}")
    before = runs.content(workdir)
    with (
        Checkpoints(workdir, CheckpointConfig(), "top1") as checkpoints,
        pytest.warns(UserWarning, match=r"step 3 cannot be read \(.*\): an older one is evaluated"),
    ):
        restored = checkpoints.restore(state(), data=None)
    assert restored is not None
    assert int(restored.step) == 2
    assert runs.content(workdir) == before


def test_the_same_step_damaged_twice(workdir: Path) -> None:
    for _ in range(2):
        truncate(largest(workdir / "checkpoints" / "3" / "params"))
        with pytest.warns(UserWarning, match="the checkpoint of step 3"):
            assert_is(restore(workdir)[0], 2)
        save(workdir, {3: None}, keep=3)
    assert sorted(path.name for path in (workdir / "damaged").iterdir()) == ["3", "3.1"]


@pytest.mark.parametrize("cause", ["a file", "a full disk"])
def test_no_place_for_a_damaged_one(cause: str, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    truncate(largest(workdir / "checkpoints" / "3" / "params"))
    if cause == "a file":
        (workdir / "damaged").touch()
    else:
        monkeypatch.setattr(shutil, "move", full)
    with pytest.raises(InputError, match=rf"^{workdir}/damaged(: must be a folder|/3: could not be written: No space)"):
        restore(workdir)
    assert kept(workdir) == [1, 2, 3]


def test_damaged_ones_in_a_row(workdir: Path) -> None:
    for step in ("2", "3"):
        flip_a_bit(largest(workdir / "checkpoints" / step / "params"))
    with pytest.warns(UserWarning, match="the checkpoint of step"):
        assert_is(restore(workdir)[0], 1)
    assert (kept(workdir), sorted(path.name for path in (workdir / "damaged").iterdir())) == ([1], ["2", "3"])


def test_all_damaged_is_an_error_and_nothing_is_moved(workdir: Path) -> None:
    for step in ("1", "2", "3"):
        truncate(largest(workdir / "checkpoints" / step / "params"))
    before = sorted(workdir.rglob("*"))
    with pytest.raises(
        InputError, match=r"^workdir: no checkpoint in .* can be read: step 3: .*; step 2: .*; step 1: "
    ):
        restore(workdir)
    assert sorted(workdir.rglob("*")) == before


@pytest.mark.filterwarnings("error:the checkpoint")
@pytest.mark.parametrize("rest", ["params", "data", "_CHECKPOINT_METADATA", "ema/_METADATA"])
def test_an_older_one_of_which_a_kill_left_a_rest(rest: str, workdir: Path) -> None:
    """Killed while it was being deleted."""
    victim = workdir / "checkpoints" / "2" / rest
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    assert save(workdir, {4: None, 5: None}) == [3, 4, 5]  # 3 is the best
    assert_is(restore(workdir)[0], 5)


@pytest.mark.filterwarnings("error:the checkpoint")
def test_a_save_that_was_cut_off_is_no_checkpoint(workdir: Path) -> None:
    folder = workdir / "checkpoints"
    shutil.copytree(folder / "3", folder / "4.orbax-checkpoint-tmp")
    shutil.rmtree(folder / "4.orbax-checkpoint-tmp" / "opt_state")
    restored, position = restore(workdir)
    assert_is(restored, 3)
    assert position == 30
    # The run does the step again, and its save takes the place of the other.
    assert save(workdir, {4: None}, keep=2) == [3, 4]
    assert sorted(path.name for path in folder.iterdir()) == ["3", "4"]
    assert_is(restore(workdir)[0], 4)


@pytest.mark.parametrize("value", ["0.1", None, [1]])
def test_a_best_figure_that_is_none_is_left_out(value: Any, workdir: Path) -> None:
    path = workdir / "checkpoints" / "2" / "_CHECKPOINT_METADATA"
    metadata = json.loads(path.read_text())
    metadata["custom_metadata"]["top1"] = value
    path.write_text(json.dumps(metadata))
    assert save(workdir, {4: 0.2, 5: 0.2}) == [3, 4, 5]


@pytest.mark.parametrize("size", [0, 2000])
def test_a_full_disk_is_one_error_and_the_last_checkpoint_is_kept(size: int, workdir: Path) -> None:
    text = rf"^{workdir}/checkpoints: could not be written: File too large; the checkpoints before are kept: make room"
    checkpoints = Checkpoints(workdir, CheckpointConfig(every_steps=1, keep=1), "top1")
    checkpoints.restore(state(), data())
    with largest_file(size), pytest.raises(InputError, match=text), checkpoints:
        checkpoints.save(state(4), 4, data(40), None)
    assert kept(workdir) == [1, 2, 3]
    assert save(workdir, {4: None}, keep=3) == [2, 3, 4]
    assert_is(restore(workdir)[0], 4)


def test_a_first_save_that_fails_promises_no_checkpoints(tmp_path: Path) -> None:
    with (
        largest_file(0),
        pytest.raises(InputError, match=r"written: File too large; make room or make it writable, and start"),
        Checkpoints(tmp_path, CheckpointConfig(every_steps=1), "top1") as checkpoints,
    ):
        checkpoints.save(state(1), 1, data(10), None)


def test_a_folder_that_becomes_another_users_ends_the_run_at_once(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Orbax, which would wait for minutes."""

    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), f"{workdir}/checkpoints/x")

    with Checkpoints(workdir, CheckpointConfig(every_steps=1), "top1") as checkpoints:
        monkeypatch.setattr(tempfile, "mkdtemp", forbidden)
        monkeypatch.setattr(ocp.CheckpointManager, "save", None)
        text = rf"^{workdir}/checkpoints: could not be written: {workdir}/checkpoints/x: Permission denied; the check"
        with pytest.raises(InputError, match=text):
            checkpoints.save(state(4), 4, data(40), None)


@pytest.mark.parametrize("content", [*NO_OBJECTS, b"[" * 100_000], ids=["list", "number", "brackets"])
def test_metadata_that_orbax_cannot_list_is_named(content: bytes, workdir: Path) -> None:
    path = workdir / "checkpoints" / "3" / "_CHECKPOINT_METADATA"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{path}: damaged; move {path.parent} away to go on from the checkpoint"):
        restore(workdir)
    shutil.rmtree(path.parent)
    assert_is(restore(workdir)[0], 2)


def test_checkpoints_that_are_a_file(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(InputError, match=rf"^{tmp_path}/checkpoints: must be a folder; move it away to go on$"):
        Checkpoints(tmp_path, CheckpointConfig(), "top1")
