"""Detectors trained and evaluated on a made-up folder by the real command, and what comes of it."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx, traverse_util
from PIL import Image

pytest.importorskip("pycocotools", reason="needs the extra `detection`")

import train.flops
import twins_jax
from tests.support import runs, short
from tests.support.alone import call_main, last_line
from tests.support.detection import ARGUMENTS, CATEGORY_IDS, CLASSES, LEARNED_IMAGES, SIZES, make_folder
from tests.support.models import NANO, classifier
from tests.support.narrow import narrow
from train.flops import loss_flops
from train.main import parse
from train.task import DatasetInfo
from twins_jax.detection import retinanet, roi_heads
from twins_jax.detection.preprocess import DetectionPreprocessing
from twins_jax.preprocess import normalize
from twins_jax.segmentation.preprocess import resize

STEPS = 2
SIDE = "64"
"""Of all inputs, one shape of training and of evaluation: most of the time goes into compiling."""


@pytest.fixture(scope="module", autouse=True)
def _nano() -> Iterator[None]:
    """Every box is an answer, however low its score: a model of four steps finds nothing otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(short.VARIANTS, "nano", NANO)
        patch.setattr(retinanet, "SCORE_THRESHOLD", 0.0)
        patch.setattr(roi_heads, "SCORE_THRESHOLD", 0.0)
        narrow(patch)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "cells")


@pytest.fixture(scope="module")
def arguments(root: Path, compile_cache: Path) -> list[str]:
    del compile_cache  # in use from now on
    return [
        *("detect_folder", "--data.dir", str(root), "--model.name", "nano", *ARGUMENTS),
        *("--data.shorter", SIDE, "--data.longer", SIDE),
        *("--steps", str(STEPS), "--checkpoint.every_steps", "1", "--checkpoint.keep", "9", "--box_samples", "32"),
    ]


Run = tuple[Path, str]


def run(arguments: list[str], workdir: Path, *more: str) -> Run:
    code, output, errors = call_main([*arguments, "--workdir", str(workdir), *more])
    assert code == 0, errors
    return workdir, output


@pytest.fixture(scope="module")
def boxes(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(arguments, tmp_path_factory.mktemp("boxes") / "run", "--report")


@pytest.fixture(scope="module")
def masks(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.flops, "loss_flops", loss_flops)  # of the experiment's own arrays, which lie on a mesh
        return run(arguments, tmp_path_factory.mktemp("masks") / "run", "--head", "mask_rcnn")


def test_the_arithmetic_of_a_loss_with_loops_is_counted(masks: Run) -> None:
    counted = re.search(r"([\d.]+) GFLOPs an image forward", masks[1])
    assert counted
    assert 0 < float(counted[1]) < 0.5  # other runs make up 1.00


def entries(workdir: Path, kind: str = "bbox") -> list[dict]:
    return json.loads((workdir / f"results.{kind}.json").read_text())


def test_a_run_says_how_it_goes(boxes: Run, masks: Run) -> None:
    final = last_line(boxes[1])
    assert list(final)[:3] == ["box_ap", "box_ap50", "box_ap75"]
    assert (final["examples"], final["step"]) == (len(SIZES), STEPS)
    assert not any(name.startswith("mask") for name in final)
    assert {"box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75"} < set(last_line(masks[1]))
    for (workdir, _), terms in (
        (boxes, {"loss_cls", "loss_bbox"}),
        (masks, {"loss_cls", "loss_bbox", "loss_rpn_cls", "loss_rpn_bbox", "loss_mask"}),
    ):
        training = [line for line in runs.metrics(workdir) if line["split"] == "train"]
        assert len(training) == STEPS
        for line in training:
            assert {name for name in line if name.startswith("loss_")} == terms
            assert line["loss"] == pytest.approx(sum(line[name] for name in terms), rel=1e-6)
            assert all(line[name] > 0 for name in terms)
        assert json.loads((workdir / "dataset.json").read_text())["class_names"] == list(CLASSES)


def test_report(boxes: Run) -> None:
    """Every object is drawn as missed: no score of a model of two steps is high."""
    workdir, output = boxes
    text = (workdir / "report" / "index.html").read_text()
    assert f"box AP {last_line(output)['box_ap']:.2%} of {len(SIZES)} images" in text
    assert text.count("<figure>") == 2 * LEARNED_IMAGES  # those with objects, and the largest miss of each


def test_results_are_those_of_each_image_alone(boxes: Run, root: Path) -> None:
    """Image by image, in the shape that the preprocessing gives it, with the weights that the run saved."""
    workdir, _ = boxes
    model = twins_jax.detector_from_pretrained(workdir)
    assert model.class_names == CLASSES
    detect = jax.jit(model.detect)
    preprocessing = DetectionPreprocessing(int(SIDE), int(SIDE))
    found = entries(workdir)
    content = json.loads((root / "annotations" / "val.json").read_text())
    for image in content["images"][:3]:
        pixels = np.asarray(Image.open(root / "images" / "val" / image["file_name"]))
        size = preprocessing.size(*pixels.shape[:2])
        images = np.zeros((1, *preprocessing.padded_shape(*size), 3), np.float32)
        images[0, : size[0], : size[1]] = normalize(resize(pixels, size))
        expected = jax.device_get(detect(images, np.array([size], np.int32)))
        own = [entry for entry in found if entry["image_id"] == image["id"]]
        valid = expected.valid[0]
        assert len(own) == valid.sum() > 50
        labels = [CATEGORY_IDS.index(entry["category_id"]) for entry in own]
        assert (labels == expected.labels[0, valid]).mean() > 0.95  # scores may tie
        np.testing.assert_allclose([entry["score"] for entry in own], expected.scores[0, valid], rtol=1e-4)
        x1, y1, x2, y2 = (expected.boxes[0, valid] / np.tile(np.divide(size, pixels.shape[:2])[::-1], 2)).T
        same = np.isclose([entry["bbox"] for entry in own], np.stack([x1, y1, x2 - x1, y2 - y1], axis=1), atol=0.01)
        assert same.all(axis=1).mean() > 0.95


def test_masks_are_of_the_images_sizes(masks: Run, root: Path) -> None:
    workdir, _ = masks
    content = json.loads((root / "annotations" / "val.json").read_text())
    sizes = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
    found = entries(workdir, "segm")
    assert len(found) == len(entries(workdir)) > 0
    assert all(entry["segmentation"]["size"] == sizes[entry["image_id"]] for entry in found)


def test_a_run_that_was_cut_off_ends_with_the_same_bits(masks: Run, arguments: list[str], tmp_path: Path) -> None:
    """Mirror images, drop-path and the samples of anchors and boxes included."""
    before, output = masks
    workdir = Path(shutil.copytree(before, tmp_path / "run"))
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    (workdir / "results.bbox.json").unlink()
    _, again = run(arguments, workdir, "--head", "mask_rcnn")
    assert last_line(again) == last_line(output)
    assert runs.differences(runs.saved(before, STEPS), runs.saved(workdir, STEPS)) == []
    for kind in ("bbox", "segm"):
        assert entries(workdir, kind) == entries(before, kind)


def test_bfloat16(masks: Run, arguments: list[str], tmp_path: Path) -> None:
    """One step and an evaluation: the same images and sampled anchors, rounded to 8 bits in the computation alone."""
    workdir, output = run(
        arguments, tmp_path / "run", "--head", "mask_rcnn", "--model.dtype", "bfloat16", "--steps", "1"
    )
    assert last_line(output)["examples"] == len(SIZES)
    found, expected = (runs.metrics(folder)[0] for folder in (workdir, masks[0]))
    losses = {name for name in expected if name.startswith("loss")}
    assert len(losses) == 6
    for name in losses:
        assert found[name] != expected[name]
    assert found["loss"] == pytest.approx(expected["loss"], rel=0.02)
    saved = runs.saved(workdir, 1)
    kept = {name: leaf for name, leaf in saved.items() if name.startswith("params/")}
    assert {leaf.dtype for leaf in kept.values()} == {np.dtype("float32")}
    assert all(np.isfinite(leaf).all() for leaf in kept.values())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ('{"images": []}', 'annotations/train.json: has no "categories"'),
        (
            {"bbox": [500, 1, 5, 5]},
            "annotations/train.json: annotation id 1: bbox=[500, 1, 5, 5]: is outside its image",
        ),
    ],
)
def test_a_wrong_file_is_one_line(
    wrong: str | dict[str, Any], message: str, root: Path, arguments: list[str], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(root, tmp_path / "data"))
    path = other / "annotations" / "train.json"
    content = json.loads(path.read_text())
    if isinstance(wrong, dict):
        content["annotations"][0] |= wrong
    path.write_text(wrong if isinstance(wrong, str) else json.dumps(content))
    code, output, errors = call_main([*arguments, "--data.dir", str(other), "--workdir", str(tmp_path / "run")])
    assert (code, output) == (2, "")
    assert errors.startswith(f"error: {other}/{message}")
    assert errors.count("\n") == 1


def test_init_takes_a_classifiers_weights_into_the_backbone(arguments: list[str], tmp_path: Path) -> None:
    source = classifier(NANO)
    twins_jax.save_pretrained(source, tmp_path / "weights")
    config = parse([*arguments, "--init", str(tmp_path / "weights")])
    model = config.make_task(DatasetInfo(3, tuple("abc"), 6, 6)).create_model(nnx.Rngs(0))
    expected = traverse_util.flatten_dict(twins_jax.get_params(source.backbone), sep="/")
    found = traverse_util.flatten_dict(twins_jax.get_params(model), sep="/")
    for name, value in expected.items():
        np.testing.assert_array_equal(found[f"backbone/{name}"], value, err_msg=name)
    assert model.num_classes == 3
    assert model.config.stage_norms
    alone = parse([*arguments, "--init", str(tmp_path / "weights"), "--eval_only"])
    with pytest.raises(twins_jax.InputError, match="detection head"):
        alone.make_task(DatasetInfo(3, tuple("abc"), 6, 6)).create_model(nnx.Rngs(0))


def flat(model: Any) -> dict[str, np.ndarray]:
    return traverse_util.flatten_dict(twins_jax.get_params(model), sep="/")


@pytest.mark.parametrize(
    ("head", "num_classes", "fresh"),
    [
        ("retinanet", 2, ()),
        ("retinanet", 3, ("heads/cls/",)),
        ("mask_rcnn", 2, ("neck/", "rpn/", "box_head/", "mask_head/")),
    ],
)
def test_init_takes_a_detectors_weights(
    head: str, num_classes: int, fresh: tuple[str, ...], boxes: Run, arguments: list[str]
) -> None:
    """All but those of other classes; of one with another head the backbone's."""
    config = parse([*arguments, "--init", str(boxes[0]), "--head", head])
    names = tuple("abc"[:num_classes])
    expected = flat(twins_jax.detector_from_pretrained(boxes[0]))
    found = flat(config.make_task(DatasetInfo(num_classes, names, 6, 6)).create_model(nnx.Rngs(5)))
    same = {name for name in found if name in expected and np.array_equal(found[name], expected[name])}
    assert {name for name in found if not name.startswith(fresh)} <= same
    kernels = {name for name in found if name.startswith(fresh) and name.endswith("kernel")}
    assert bool(kernels) == bool(fresh)
    assert not kernels & same
    assert {name.split("/")[0] for name in found} > {"backbone", "neck"}


def test_a_detectors_weights_are_evaluated(boxes: Run, arguments: list[str], tmp_path: Path) -> None:
    workdir, output = boxes
    flags = ["--init", str(workdir), "--eval_only", "--workdir", str(tmp_path / "other")]
    _, again = run(arguments, tmp_path / "other", *flags[:3])
    assert last_line(again) == last_line(output) | {"step": 0}
    assert entries(tmp_path / "other") == entries(workdir)
    code, _, errors = call_main([*arguments, *flags, "--head", "mask_rcnn"])
    assert code == 2
    assert "of the head mask_rcnn: found retinanet" in errors
