"""A segmenter on eight simulated devices: run as a script this measures, run by pytest it judges the figures."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

import train.experiment
import twins_jax.config
from tests.support.compilation import compile_fast
from tests.support.devices import measured_on_eight_devices
from tests.support.models import NANO
from tests.support.segmentation import SIZES, make_folder
from train.config import ModelConfig
from train.distributed import to_global
from train.evaluate import evaluate
from train.experiment import build
from train.recipes import segment_folder
from train.tasks.segmentation.config import SegmentationConfig
from twins_jax.sharding import AXES, make_mesh

PARTS = "data 2, fsdp 4"
STEPS = 2

# As in tests/train/test_distributed_devices.py; the running statistics are sums over up to 8,192 positions.
ROUNDING = 64 * float(np.finfo(np.float32).eps)


def mesh(name: str) -> Mesh:
    if name == "one device":
        return jax.make_mesh((1, 1), AXES, axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:1])
    return make_mesh(4)


def config(folder: Path, name: str) -> SegmentationConfig:
    base = segment_folder()
    return dataclasses.replace(
        base,
        model=ModelConfig(name="narrow"),
        data=dataclasses.replace(
            base.data, dir=str(folder), crop_size=32, shorter=48, longer=96, eval_multiple=32, threads=2
        ),
        optim=dataclasses.replace(base.optim, learning_rate=1e-3, warmup_steps=0),
        steps=100,
        batch_size=8,
        eval_batch_size=8,
        fsdp=4 if name == PARTS else 1,
    )


def measure(folder: Path) -> dict[str, Any]:
    twins_jax.config.VARIANTS["narrow"] = NANO
    make_folder(folder / "data")
    found: dict[str, Any] = {}
    for name in ("one device", PARTS):
        train.experiment.make_mesh = lambda fsdp, name=name: mesh(name)  # noqa: ARG005
        run = build(config(folder / "data", name))
        assert run.train_step is not None
        data, state, values = iter(run.task.batches("train", run.config.batch_size)), run.state, []
        for step in range(STEPS):
            state, metrics = run.train_step(state, to_global(next(data), run.mesh))
            values.append({key: float(value) for key, value in metrics.items()})
            if step == 0:  # later ones are of other parameters: AdamW makes whole steps of gradients that are rounding
                statistics = {
                    jax.tree_util.keystr(path): np.asarray(leaf).tolist()
                    for path, leaf in jax.tree_util.tree_leaves_with_path(state.batch_stats)
                }
        batches = (to_global(batch, run.mesh) for batch in run.task.batches("eval", run.config.eval_batch_size))
        figures = evaluate(run.task.evaluator(), run.eval_step, state.params, state.batch_stats, batches)
        leaves = jax.tree.leaves(state.params)
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves) / sum(leaf.nbytes for leaf in leaves)
        found[name] = {"values": values, "eval": figures, "statistics": statistics, "held": held}
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return measured_on_eight_devices(__file__, tmp_path_factory.mktemp("devices"))


def test_losses_and_gradients_are_those_of_one_device(found: dict[str, Any]) -> None:
    first, second = (found[name]["values"] for name in ("one device", PARTS))
    assert [set(values) for values in first] == [{"loss", "loss_decode", "grad_norm"}] * STEPS
    for values, expected in zip(second, first, strict=True):
        assert values == pytest.approx(expected, rel=ROUNDING)
    assert abs(first[1]["loss"] - first[0]["loss"]) > 100 * ROUNDING  # else the comparison would show little


def test_running_statistics_are_those_of_one_device(found: dict[str, Any]) -> None:
    first, second = (found[name]["statistics"] for name in ("one device", PARTS))
    assert len(first) == 2 * 7  # of the scale heads' convolutions
    for name, expected in first.items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(second[name], expected, rtol=0, atol=ROUNDING * scale, err_msg=name)


def test_evaluation_is_that_of_one_device(found: dict[str, Any]) -> None:
    """Groups of five and of one image, in batches of eight rows."""
    first, second = (found[name]["eval"] for name in ("one device", PARTS))
    assert first["examples"] == len(SIZES)
    assert 0 < first["miou"] < 1
    # A pixel between two classes may change sides.
    assert second == pytest.approx(first, rel=1e-3)


def test_each_device_holds_its_part_of_the_parameters(found: dict[str, Any]) -> None:
    assert found["one device"]["held"] == 1
    assert found[PARTS]["held"] == pytest.approx(1 / 4, rel=0.1)


if __name__ == "__main__":
    compile_fast()
    Path(sys.argv[1], "found.json").write_text(json.dumps(measure(Path(sys.argv[1])), indent=1))
