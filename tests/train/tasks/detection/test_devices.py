"""Mask R-CNN on two simulated devices: run as a script this measures, run by pytest it judges the figures."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

pytest.importorskip("pycocotools", reason="needs the extra `detection`")

from pycocotools.mask import area

import train.experiment
import twins_jax.config
from tests.support.compilation import compile_fast
from tests.support.detection import ARGUMENTS, SIZES, make_folder
from tests.support.devices import measured_on_eight_devices
from tests.support.models import NANO, named, relative_error
from tests.support.narrow import small
from train.distributed import to_global
from train.evaluate import evaluate
from train.experiment import build
from train.main import parse
from train.tasks.detection.losses import Truth, sample_rois
from twins_jax.sharding import AXES, batch_sharding

STEPS, SAMPLES = 2, 32

# As in tests/train/test_distributed_devices.py; gradients are sums over hundreds of anchors.
ROUNDING = 64 * float(np.finfo(np.float32).eps)


def mesh(count: int) -> Mesh:
    """The first devices, all along "fsdp": images and parameters are both split over them."""
    return jax.make_mesh((1, count), AXES, axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:count])


def measure(folder: Path) -> dict[str, Any]:
    """The figures on one device and on two, and how far their gradients are apart."""
    twins_jax.config.VARIANTS["narrow"] = NANO
    arguments = ["detect_folder", "--data.dir", str(make_folder(folder / "data")), "--head", "mask_rcnn", *ARGUMENTS]
    arguments += ["--model.name", "narrow", "--data.shorter", "64", "--data.longer", "64", "--workdir", str(folder)]
    arguments += ["--batch_size", "4", "--eval_batch_size", "4", "--box_samples", str(SAMPLES), "--fsdp"]
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        patch.setattr(train.experiment, "make_mesh", mesh)
        patch.setattr(train.experiment, "make_optimizer", lambda *_: optax.sgd(1e-3, momentum=0))  # keeps gradients
        (one, gradients), (two, others) = (measure_run(parse([*arguments, str(count)])) for count in (1, 2))
    apart = {name: relative_error(others[name], gradient) for name, gradient in gradients.items()}
    return {"one": one, "two": two, "apart": apart, "samples": [samples(mesh(count)) for count in (1, 2)]}


def measure_run(config: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The figures of a run, and the gradients of its first step."""
    run = build(config)
    assert run.train_step is not None
    data, state, values = iter(run.task.batches("train", config.batch_size)), run.state, []
    for step in range(STEPS):
        state, metrics = run.train_step(state, to_global(next(data), run.mesh))
        values.append({key: float(value) for key, value in metrics.items()})
        if step == 0:
            gradients = named(state.opt_state[0].trace)
    batches = (to_global(batch, run.mesh) for batch in run.task.batches("eval", config.eval_batch_size))
    figures = evaluate(run.task.evaluator(), run.eval_step, state.params, state.batch_stats, batches)
    answers = [json.loads(Path(config.workdir, f"results.{kind}.json").read_text()) for kind in ("bbox", "segm")]
    leaves = jax.tree.leaves(state.params)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves) / sum(leaf.nbytes for leaf in leaves)
    return {"values": values, "figures": figures, "answers": answers, "held": held}, gradients


def samples(mesh: Mesh) -> list[Any]:
    """The boxes sampled of four images that are alike."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 40, (63, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 24, (63, 2))], axis=1).astype(np.float32)
    boxes = np.tile(boxes, (4, 1, 1))
    truth = Truth(boxes[:, :3], np.zeros((4, 3), np.int32), np.ones((4, 3), bool), np.full((4, 2), 64, np.int32))
    proposals, valid, truth = jax.device_put((boxes[:, 3:], np.ones((4, 60), bool), truth), batch_sharding(mesh))
    drawn = jax.jit(lambda *arrays: sample_rois(*arrays, SAMPLES))(proposals, valid, truth, jax.random.key(0))
    return [np.asarray(array).tolist() for array in drawn]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return measured_on_eight_devices(__file__, tmp_path_factory.mktemp("devices"))


def test_losses_and_gradients_are_those_of_one_device(found: dict[str, Any]) -> None:
    """The anchors, proposals and boxes that are sampled decide them."""
    first, second = (found[name]["values"] for name in ("one", "two"))
    terms = {"loss_cls", "loss_bbox", "loss_rpn_cls", "loss_rpn_bbox", "loss_mask"}
    assert [set(values) for values in first] == [terms | {"loss", "grad_norm"}] * STEPS
    for values, expected in zip(second, first, strict=True):
        assert values == pytest.approx(expected, rel=ROUNDING)
    assert abs(first[1]["loss"] - first[0]["loss"]) > 1000 * ROUNDING  # else the comparison would show little
    assert len(found["apart"]) == 50
    assert max(found["apart"].values()) < ROUNDING


def test_boxes_are_sampled_by_image(found: dict[str, Any]) -> None:
    """The same ones, whichever device has the image."""
    first, second = found["samples"]
    assert first == second
    boxes, assigned, valid = (np.array(array) for array in first)
    assert valid.all()
    assert ((assigned >= 0).sum(axis=1) >= 1).all()
    assert all(len(np.unique(image, axis=0)) == SAMPLES for image in boxes)
    # Images that are alike: each draws by a key of its own.
    assert all((boxes[i] != boxes[j]).any() for i, j in itertools.combinations(range(4), 2))


def test_evaluation_is_that_of_one_device(found: dict[str, Any]) -> None:
    """Six images in batches of four rows. Random weights have an AP near 0: the answers tell more."""
    first, second = (found[name]["figures"] for name in ("one", "two"))
    assert first["examples"] == len(SIZES)
    assert second == pytest.approx(first, rel=1e-6)
    (boxes, masks), (other_boxes, other_masks) = (found[name]["answers"] for name in ("one", "two"))
    assert len(boxes) == len(masks) > 300
    assert len({answer["image_id"] for answer in boxes}) == len(SIZES)
    areas, other_areas = ([int(area(answer.pop("segmentation"))) for answer in each] for each in (masks, other_masks))
    assert sum(areas) > 1000  # pixels
    np.testing.assert_allclose(other_areas, areas, atol=2)  # a pixel on the edge may change sides
    for answer, other in zip(boxes + masks, other_boxes + other_masks, strict=True):
        assert other.pop("score") == pytest.approx(answer.pop("score"), rel=1e-5)
        assert other.pop("bbox", None) == pytest.approx(answer.pop("bbox", None), abs=1e-3)
        assert other == answer  # image and category


def test_each_device_holds_its_part_of_the_parameters(found: dict[str, Any]) -> None:
    assert found["one"]["held"] == 1
    assert found["two"]["held"] == pytest.approx(1 / 2, rel=0.1)


if __name__ == "__main__":
    compile_fast()
    Path(sys.argv[1], "found.json").write_text(json.dumps(measure(Path(sys.argv[1])), indent=1))
