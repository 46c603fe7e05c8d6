import dataclasses
import errno
import functools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from tests.support import runs
from tests.support.disk import largest_file
from train.checkpoint import Checkpoints
from train.config import CheckpointConfig
from train.state import TrainState, create_state
from twins_jax import InputError
from twins_jax.sharding import make_mesh

SHAPES = {"blocks": {"0": {"kernel": (40, 33)}}, "scale": (7,)}


def state(step: int = 0, shapes: dict[str, Any] = SHAPES, *, ema: bool = True) -> TrainState:
    """Values that a step makes different everywhere, in the optimizer too."""
    rng = np.random.default_rng(step)
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    params = jax.tree.map(lambda _: jnp.zeros(()), shapes, is_leaf=is_shape)
    params = jax.tree.map(lambda _, shape: jnp.zeros(shape), params, shapes)
    start = create_state(params, {}, optax.adamw(1e-3), make_mesh(), ema=ema)

    def fill(leaf: jax.Array) -> jax.Array:
        values = rng.standard_normal(leaf.shape) if leaf.dtype == jnp.float32 else np.full(leaf.shape, step)
        return jax.device_put(jnp.asarray(values, leaf.dtype), leaf.sharding)

    return dataclasses.replace(jax.tree.map(fill, start), step=jnp.int32(step))


def data(position: int = 0) -> grain.DatasetIterator:
    iterator = iter(grain.MapDataset.range(1000).to_iter_dataset())
    for _ in range(position):
        next(iterator)
    return iterator


def save(workdir: Path, steps: dict[int, float | None], keep: int = 2, **arguments: Any) -> list[int]:
    """Restores the newest checkpoint and saves steps with their top-1, as one run does; returns the steps kept."""
    with Checkpoints(workdir, CheckpointConfig(every_steps=1, keep=keep), "top1") as checkpoints:
        checkpoints.restore(state(**arguments), data())
        for step, top1 in steps.items():
            evaluation = None if top1 is None else {"top1": top1, "loss": 1.0}
            checkpoints.save(state(step, **arguments), step, data(10 * step), evaluation)
    return kept(workdir)


def kept(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def restore(workdir: Path, template: TrainState | None = None) -> tuple[TrainState | None, int]:
    """The state, and the next example of its data."""
    with Checkpoints(workdir, CheckpointConfig(every_steps=1, keep=9), "top1") as checkpoints:
        iterator = data()
        restored = checkpoints.restore(template or state(), iterator)
        return restored, int(next(iterator))


def assert_is(restored: TrainState | None, step: int, **arguments: Any) -> None:
    expected = state(step, **arguments)
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    for actual, leaf in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        assert (actual.dtype, actual.sharding) == (leaf.dtype, leaf.sharding)
        assert np.asarray(actual).tobytes() == np.asarray(leaf).tobytes()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("three")
    assert save(workdir, {1: 0.1, 2: 0.2, 3: 0.3}, keep=3) == [1, 2, 3]
    return workdir


@pytest.fixture
def workdir(three: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(three, tmp_path / "copy"))


@pytest.mark.filterwarnings("error:the checkpoint")
@pytest.mark.parametrize("ema", [True, False])
def test_restores_every_bit(ema: bool, tmp_path: Path) -> None:
    save(tmp_path, {4: None}, ema=ema)
    restored, position = restore(tmp_path, state(ema=ema))
    assert_is(restored, 4, ema=ema)
    assert position == 40


def test_nothing_to_restore(tmp_path: Path) -> None:
    assert restore(tmp_path) == (None, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("error:the checkpoint")
def test_evaluation_needs_parameters_alone(workdir: Path) -> None:
    with Checkpoints(workdir, CheckpointConfig(), "top1") as checkpoints:
        # Another optimizer, and no moving average: evaluation ignores both.
        template = create_state(state().params, {}, optax.identity(), make_mesh(), ema=False)
        restored = checkpoints.restore(template, data=None)
    assert restored is not None
    assert int(restored.step) == 3
    np.testing.assert_array_equal(restored.params["scale"], state(3).params["scale"])


def test_save_is_of_the_state_at_that_time(tmp_path: Path) -> None:
    """The save goes on while the next step overwrites its donated input."""
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0, tree), donate_argnums=0)
    with Checkpoints(tmp_path, CheckpointConfig(every_steps=1, keep=9), "top1") as checkpoints:
        for step in range(1, 6):
            current = state(step)
            checkpoints.save(current, step, data(10 * step), None)
            jax.block_until_ready(overwrite(current))
    for step in range(5, 0, -1):
        restored, position = restore(tmp_path)
        assert_is(restored, step)
        assert position == 10 * step
        shutil.rmtree(tmp_path / "checkpoints" / str(step))


@pytest.mark.parametrize(
    ("top1", "expected"),
    [
        ({1: 0.9, 2: 0.1, 3: None, 4: 0.2, 5: None}, [1, 4, 5]),
        ({1: 0.5, 2: None, 3: 0.5, 4: 0.2, 5: None}, [3, 4, 5]),  # of equal ones the newest
        ({1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: None}, [4, 5]),
        ({1: None, 2: None, 3: None, 4: None, 5: None}, [4, 5]),
    ],
)
@pytest.mark.parametrize("restarts", [False, True])
def test_newest_and_best_are_kept(
    top1: dict[int, float | None], expected: list[int], restarts: bool, tmp_path: Path
) -> None:
    runs = [{step: value} for step, value in top1.items()] if restarts else [top1]
    for steps in runs:
        save(tmp_path, steps)
    assert kept(tmp_path) == expected


@pytest.mark.parametrize("every", [1, 4])
def test_when_a_save_is_due(every: int, tmp_path: Path) -> None:
    with Checkpoints(tmp_path, CheckpointConfig(every_steps=every), "top1") as checkpoints:
        assert [step for step in range(1, 13) if checkpoints.is_due(step)] == list(range(every, 13, every))
        checkpoints.save(state(8), 8, data(), None)
        checkpoints.save(state(9), 8, data(), None)  # has been done
        assert not checkpoints.is_due(8)
        assert checkpoints.is_due(12)
    assert_is(restore(tmp_path)[0], 8)


@pytest.mark.parametrize(
    ("shapes", "ema", "lines"),
    [
        ({"blocks": {"0": {"kernel": (40, 33)}}}, True, [r"\+ params/scale \(7,\) is left over"]),
        ({**SHAPES, "more": (2,)}, True, [r"- params/more \(2,\) is missing", r"- ema/more \(2,\) is missing"]),
        ({**SHAPES, "scale": (8,)}, True, [r"! params/scale has shape \(7,\), expected \(8,\)"]),
        ({**SHAPES, "more": (2,)}, False, [r"- opt_state/0/mu/more \(2,\) is missing"]),
    ],
)
def test_another_model_is_named_and_nothing_is_touched(
    shapes: dict[str, Any], ema: bool, lines: list[str], workdir: Path
) -> None:
    before = sorted(workdir.rglob("*"))
    with pytest.raises(InputError, match=r"^workdir: .*/checkpoints/3 does not fit; .* another model") as caught:
        restore(workdir, state(shapes=shapes, ema=ema))
    for line in lines:
        assert re.search(rf"^  {line}$", str(caught.value), re.MULTILINE)
    assert sorted(workdir.rglob("*")) == before


def test_a_moving_average_that_was_not_kept_is_missing(tmp_path: Path) -> None:
    save(tmp_path, {1: None}, ema=False)
    with pytest.raises(InputError, match=r"- ema/scale \(7,\) is missing"):
        restore(tmp_path, state(ema=True))


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
