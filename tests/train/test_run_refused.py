"""Starts in the folder of a run that are refused, which changes nothing in it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import runs
from tests.support.alone import Alone, RunMain

pytestmark = pytest.mark.usefixtures("short_variant")


def _break_checkpoints(workdir: Path) -> None:
    (workdir / "checkpoints" / "4" / "params" / "manifest.ocdbt").unlink()


def _cut_config(workdir: Path) -> None:
    (workdir / "config.json").write_text('{"workdir":')


def _metrics_folder(workdir: Path) -> None:
    (workdir / "metrics.jsonl").unlink()
    (workdir / "metrics.jsonl").mkdir()


def _damaged_file(workdir: Path) -> None:
    (workdir / "damaged").touch()


@pytest.mark.parametrize(
    ("more", "damage", "message"),
    [
        (("--data.image_size", "64", "--model.drop_path_rate", "0.3"), None, "! data.image_size is 64, the run has 32"),
        (("--eval_only", "--data.image_size", "64"), None, "! data.image_size is 64, the run has 32"),
        (("--batch_size", "16"), None, "! batch_size is 16, the run has 8"),
        (("--init", "{tmp}/none", "--allow_changes"), None, "{tmp}/none: No such file"),
        (("--data.source", "folder", "--data.dir", "{tmp}/none", "--allow_changes"), None, "{tmp}/none/train: no such"),
        (("--fsdp", "3"), None, "fsdp=3: must be a divisor"),
        ((), _break_checkpoints, "can be read: step 4: "),
        (("--eval_only",), _break_checkpoints, "can be read: step 4: "),
        ((), _cut_config, "/config.json: is no JSON: "),
        (("--eval_only",), _cut_config, "; remove it to evaluate with a recipe and flags\n"),
        (("--steps", "20"), _metrics_folder, "/metrics.jsonl: must be a file; move it away to go on\n"),
        (("--steps", "20"), _damaged_file, "/damaged: must be a folder; move it away to go on\n"),
    ],
)
def test_a_start_that_is_refused_changes_nothing(
    more: tuple[str, ...],
    damage: Callable[[Path], None] | None,
    message: str,
    alone: Alone,
    run_main: RunMain,
    rerun: RunMain,
    tmp_path: Path,
) -> None:
    """In any byte, although the run was cut off with lines beyond its checkpoint and a save that had not ended."""
    workdir = alone.copy_until(4, tmp_path / "run")
    (workdir / "checkpoints" / "8.orbax-checkpoint-tmp").mkdir()
    if damage:
        damage(workdir)
    before = runs.content(workdir)
    start = rerun if damage else run_main  # which builds, up to the error
    code, output, errors = start(workdir, *(word.format(tmp=tmp_path) for word in more))
    assert (code, "final:" in output) == (2, False)
    assert message.format(tmp=tmp_path) in errors
    assert "Traceback" not in errors
    assert runs.content(workdir) == before


def test_all_checkpoints_damaged(alone: Alone, rerun: RunMain, tmp_path: Path) -> None:
    workdir = alone.copy_until(4, tmp_path / "run")
    _break_checkpoints(workdir)
    code, output, errors = rerun(workdir)
    assert (code, "final:" in output) == (2, False)
    assert re.search(rf"^error: workdir: no checkpoint in {workdir}/checkpoints can be read: step 4: .*\n$", errors)
    assert runs.checkpoints(workdir) == [4]


def test_checkpoint_of_another_model(alone: Alone, run_main: RunMain, digits_folder: Path, tmp_path: Path) -> None:
    workdir = alone.copy_until(4, tmp_path / "run")
    before = runs.content(workdir)
    data = ("--data.source", "folder", "--data.dir", str(digits_folder), "--optim.ema_decay", "0")
    code, _, errors = run_main(workdir, "--eval_only", *data, "--allow_changes")
    assert code == 2
    assert "  ! params/head/bias has shape (10,), expected (3,)\n" in errors
    assert runs.content(workdir) == before


def test_workdir_that_cannot_be_written(rerun: RunMain, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, errors = rerun(tmp_path / "file" / "run")
    assert code == 2
    assert errors == f"error: workdir='{tmp_path}/file/run': must be a path that can be used: Not a directory\n"
