import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

from tests.support.checkpoints import SHAPES, assert_is, data, kept, restore, save, state
from train.checkpoint import Checkpoints
from train.config import CheckpointConfig
from train.state import create_state
from twins_jax import InputError
from twins_jax.sharding import make_mesh


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
