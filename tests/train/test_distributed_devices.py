"""Eight simulated devices: run as a script this measures, run by pytest it judges the script's figures."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh

import train.experiment
import twins_jax.config
from tests.support import batch_norm
from tests.support.classification import train_batches
from tests.support.compilation import compile_fast
from tests.support.devices import measured_on_eight_devices
from tests.support.models import SVT
from train.benchmark.collectives import read_traffic
from train.checkpoint import Checkpoints
from train.config import ModelConfig
from train.distributed import to_global
from train.evaluate import evaluate, make_eval_step
from train.experiment import Experiment, build
from train.optim import make_optimizer, make_schedule
from train.recipes import digits
from train.state import TrainState, create_state
from train.tasks.classification.config import ClassificationConfig, MixConfig
from train.tasks.classification.metrics import MultiLabelEvaluator
from train.tasks.classification.mixing import mix
from twins_jax import get_params
from twins_jax.sharding import AXES, batch_sharding, make_mesh

PARTS = "data 2, fsdp 4, accumulated"
FSDP = {"one device": 1, "data 8": 1, "fsdp 8": 8, PARTS: 4}
SPLIT = ["fsdp 8", PARTS]
BATCH, STEPS = 32, 3

# Losses differ by rounding alone: partial sums are added up in another order. They were at most 6 units of rounding
# apart, of 1.2e-7 each, and 2 apart on one device after a change of every parameter to a neighboring float32; the
# rest is for other processors. Wrong rows, random numbers or gradients change a loss by thousands of units.
ROUNDING = 16 * float(np.finfo(np.float32).eps)


def mesh(name: str) -> Mesh:
    if name == "one device":
        return jax.make_mesh((1, 1), AXES, axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:1])
    return make_mesh(FSDP[name])


def config(name: str) -> ClassificationConfig:
    """Random mixing and erasing, a moving average, and a learning rate that is high from the first step."""
    base = digits()
    return dataclasses.replace(
        base,
        model=ModelConfig(name="narrow"),  # no drop-path, which accumulation draws in another order
        optim=dataclasses.replace(base.optim, warmup_epochs=0, ema_decay=0.5, accumulate=2 if name == PARTS else 1),
        mix=dataclasses.replace(base.mix, mixup_alpha=0.8, cutmix_alpha=1.0, erase_probability=0.5),
        steps=100,
        batch_size=BATCH,
        eval_batch_size=48,
        fsdp=FSDP[name],
    )


def training_data() -> Any:
    return iter(train_batches(config("fsdp 8").data, BATCH, seed=0))


def steps(run: Experiment, state: TrainState, batches: list[Any]) -> tuple[TrainState, list[list[float]]]:
    assert run.train_step is not None
    values = []
    for batch in batches:
        state, metrics = run.train_step(state, to_global(batch, run.mesh))
        values.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return state, values


def share(state: TrainState) -> list[float]:
    """The share of a state's bytes that each device holds."""
    leaves = jax.tree.leaves(state)
    shards = [shard for leaf in leaves for shard in leaf.addressable_shards]
    held = dict.fromkeys((shard.device for shard in shards), 0)
    for shard in shards:
        held[shard.device] += shard.data.nbytes
    return [value / sum(leaf.nbytes for leaf in leaves) for value in held.values()]


def equal(first: TrainState, second: TrainState) -> bool:
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


class Pixels(nnx.Module):
    """Takes some pixels for its logits, which are then the same on every device."""

    def __call__(self, images: jax.Array) -> jax.Array:
        return images[:, 12, 10:20:2, 0]


def several_labels(batch: dict[str, Any]) -> dict[str, Any]:
    """Labels 0, 2, 4 and those below the digit."""
    classes = np.arange(5)
    return batch | {"label": (classes < batch["label"][:, None] - 4) | (classes == batch["label"][:, None] // 2)}


def measure(folder: Path) -> dict[str, Any]:
    twins_jax.config.VARIANTS["narrow"] = SVT
    data = training_data()
    batches, more = ([next(data) for _ in range(count)] for count in (STEPS, 2))
    found: dict[str, Any] = {}
    for name in ("one device", *SPLIT):  # each compiles a training step, which takes most of the time
        train.experiment.make_mesh = lambda fsdp, name=name: mesh(name)  # noqa: ARG005
        run = build(config(name))
        parts = (to_global(batch, run.mesh) for batch in run.task.batches("eval", run.config.eval_batch_size))
        found[name] = {"eval": evaluate(run.task.evaluator(), run.eval_step, run.state.params, {}, parts)}
        state, values = steps(run, run.state, batches)
        layouts = [jax.tree.map(lambda leaf: leaf.sharding, tree) for tree in (run.state, state)]
        found[name] |= {"values": values, "share": share(state), "layout is kept": layouts[0] == layouts[1]}
        found[name]["is donated"] = all(leaf.is_deleted() for leaf in jax.tree.leaves(run.state))

        # Written from eight devices that hold parts; read there, in other parts, and to one device.
        with Checkpoints(folder, run.config.checkpoint, "top1") as checkpoints:
            if name == "fsdp 8":
                saved = jax.tree.map(np.asarray, state)
                position = training_data()
                for _ in batches:
                    next(position)
                checkpoints.save(state, STEPS, position, None)
            elif name == PARTS:
                restored = checkpoints.restore(run.state, training_data())
                found["restored in other parts"] = restored is not None and equal(restored, saved)
        if name == "fsdp 8":
            unbroken, expected = steps(run, state, more)
            with Checkpoints(folder, run.config.checkpoint, "top1") as checkpoints:
                position = training_data()
                restored = checkpoints.restore(run.state, position)
            assert restored is not None
            found["restored"] = equal(restored, saved)
            resumed, values = steps(run, restored, [next(position) for _ in more])
            found["resumed"] = equal(resumed, unbroken) and values == expected

    for name in ("one device", "data 8"):
        train.experiment.make_mesh = lambda fsdp, name=name: mesh(name)  # noqa: ARG005
        run = build(batch_norm.config(batch_size=BATCH, optim=dataclasses.replace(digits().optim, accumulate=2)))
        state, _ = steps(run, run.state, [next(training_data()) for _ in range(2)])
        found[f"statistics on {name}"] = {name: np.asarray(x).tolist() for name, x in state.batch_stats["bn"].items()}

    for name in ("one device", "data 8"):
        step = make_eval_step(MultiLabelEvaluator(), nnx.graphdef(Pixels()), mesh(name))
        parts = (to_global(several_labels(batch), mesh(name)) for batch in run.task.batches("eval", 48))
        found[f"several labels on {name}"] = evaluate(MultiLabelEvaluator(), step, {}, {}, parts)

    images, targets = (
        jax.ShapeDtypeStruct((16, *shape), np.float32, sharding=batch_sharding(mesh("data 8")))
        for shape in ((24, 24, 3), (7,))
    )
    mixed = jax.jit(mix, static_argnums=3).lower(jax.random.key(0), images, targets, MixConfig(mixup_alpha=0.8))
    found["mixing sends"] = read_traffic(mixed.compile().as_text()).total.payload_bytes

    tiny = dataclasses.replace(config("fsdp 8"), model=ModelConfig(name="twins_svt_tiny"))
    optimizer = make_optimizer(tiny, make_schedule(tiny, 1442))
    shapes = get_params(nnx.eval_shape(lambda: tiny.make_task().create_model(nnx.Rngs(0))))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    found["share of tiny"] = share(create_state(params, {}, optimizer, mesh("fsdp 8"), ema=True))
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return measured_on_eight_devices(__file__, tmp_path_factory.mktemp("devices"))


@pytest.mark.parametrize("name", SPLIT)
def test_losses_and_gradients_are_those_of_one_device(found: dict[str, Any], name: str) -> None:
    np.testing.assert_allclose(found[name]["values"], found["one device"]["values"], rtol=ROUNDING)
    losses = [loss for loss, _ in found["one device"]["values"]]
    assert len(losses) == STEPS
    assert min(abs(np.diff(losses))) > 1000 * ROUNDING  # else the comparison would show little


@pytest.mark.parametrize("name", SPLIT)
def test_evaluation_is_that_of_one_device(found: dict[str, Any], name: str) -> None:
    """355 examples, which neither the batch nor the devices divide."""
    actual, expected = found[name]["eval"], found["one device"]["eval"]
    assert actual["examples"] == 355
    assert (actual["top1"], actual["top5"]) == (expected["top1"], expected["top5"])
    assert actual["loss"] == pytest.approx(expected["loss"], rel=ROUNDING)


def test_several_labels_are_evaluated_as_on_one_device(found: dict[str, Any]) -> None:
    actual, expected = found["several labels on data 8"], found["several labels on one device"]
    assert actual == expected | {"loss": pytest.approx(expected["loss"], rel=ROUNDING)}
    assert (actual["examples"], 0.1 < actual["map"] < 0.9) == (355, True)


def test_each_device_holds_its_part_of_parameters_and_optimizer_state(found: dict[str, Any]) -> None:
    assert found["one device"]["share"] == [1.0]
    # A little more than an even split: biases, norms and the PEG are copied.
    for name, fsdp in (("fsdp 8", 8), (PARTS, 4)):
        assert found[name]["share"] == pytest.approx([1 / fsdp] * 8, rel=0.25)
    assert found["share of tiny"] == pytest.approx([1 / 8] * 8, rel=0.06)


@pytest.mark.parametrize("name", ["one device", *SPLIT])
def test_steps_keep_the_layout_and_reuse_the_memory(found: dict[str, Any], name: str) -> None:
    assert found[name]["layout is kept"]
    assert found[name]["is donated"]


def test_mixing_sends_one_image_of_each_device(found: dict[str, Any]) -> None:
    """float32, with its targets, whatever the number of images on a device."""
    assert found["mixing sends"] == 4 * (24 * 24 * 3 + 7)


def test_checkpoint_of_split_parameters(found: dict[str, Any]) -> None:
    assert found["restored"]
    assert found["resumed"], "on the same devices the run must go on bit for bit"
    assert found["restored in other parts"]


if __name__ == "__main__":
    compile_fast()
    Path(sys.argv[1], "found.json").write_text(json.dumps(measure(Path(sys.argv[1])), indent=1))


def test_batch_norm_is_synchronized(found: dict[str, Any]) -> None:
    """The statistics are those of the whole batch on one device; those of one device's rows would differ by a tenth."""
    for name, values in found["statistics on one device"].items():
        np.testing.assert_allclose(found["statistics on data 8"][name], values, rtol=ROUNDING, atol=ROUNDING)
