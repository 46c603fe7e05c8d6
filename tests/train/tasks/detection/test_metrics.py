"""Figures against pycocotools itself over files, and the way from a batch's outputs to them."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="needs the extra `detection`")

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from train.evaluate import MAX_IN_FLIGHT
from train.tasks.detection.metrics import FIGURES, DetectionEvaluator, Kind, Results, evaluate, figures
from train.tasks.detection.prediction import Found
from twins_jax import Detections
from twins_jax.detection.masks import encode_rle

KINDS: tuple[Kind, ...] = ("bbox", "segm")
CATEGORIES = ({"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 90, "name": "owl"})
SIZE = (120, 150)


def rectangle(box: list[float]) -> dict[str, Any]:
    """The mask of a box's whole pixels."""
    x, y, w, h = (round(side) for side in box)
    mask = np.zeros((1, *SIZE), bool)
    mask[:, max(y, 0) : y + h, max(x, 0) : x + w] = True
    return encode_rle(mask)[0]


def make_truth(rng: np.random.Generator) -> dict[str, Any]:
    """Six images of objects of all three sizes, some of them crowds; the last image has none."""
    images = [{"id": int(i), "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in range(20, 26)]
    annotations = []
    for image in images[:-1]:
        for _ in range(rng.integers(1, 6)):
            w, h = rng.uniform(4, 110, 2)
            box = [*rng.uniform(0, [SIZE[1] - w, SIZE[0] - h]).tolist(), float(w), float(h)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": CATEGORIES[rng.integers(3)]["id"],
                    "bbox": box,
                    "area": float(w * h * rng.uniform(0.5, 1)),
                    "iscrowd": int(rng.random() < 0.15),
                    "segmentation": rectangle(box),
                }
            )
    return {"images": images, "categories": [*CATEGORIES], "annotations": annotations}


def found_from(truth: dict[str, Any], rng: np.random.Generator, *, noise: float) -> list[Found]:
    """Detections near the objects and elsewhere, some of another class; with noise 0 the objects themselves."""
    found = []
    labels = {category["id"]: label for label, category in enumerate(CATEGORIES)}
    for row, image in enumerate(truth["images"]):
        own = [
            each for each in truth["annotations"] if each["image_id"] == image["id"] and (noise or not each["iscrowd"])
        ]
        boxes = [np.array(each["bbox"]) + rng.normal(0, noise, 4) for each in own]
        classes = [labels[each["category_id"]] for each in own]
        if noise:
            boxes += [np.concatenate([rng.uniform(0, 80, 2), rng.uniform(3, 60, 2)]) for _ in range(rng.integers(4))]
            classes = [int(rng.integers(3)) if rng.random() < 0.2 else label for label in classes]
            classes += rng.integers(3, size=len(boxes) - len(classes)).tolist()
        sides = np.maximum(np.array(boxes).reshape(-1, 4), 1).astype(np.float32)
        corners = np.concatenate([sides[:, :2], sides[:, :2] + sides[:, 2:]], axis=1)
        scores = rng.random(len(boxes)).round(1).astype(np.float32)  # ties
        masks = [rectangle(each.tolist()) for each in sides] if noise else [each["segmentation"] for each in own]
        found.append(Found(row, corners, scores, np.array(classes, np.int32), masks))
    return found


def gathered(truth: dict[str, Any], found: list[Found]) -> Results:
    results = Results(truth, KINDS)
    for each in found:
        results.add(each)
    return results


def test_twenty_random_sets_have_pycocotools_figures(tmp_path: Path) -> None:
    """Its own reading of both files, and its own twelve numbers."""
    seen = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        truth = make_truth(rng)
        results = gathered(truth, found_from(truth, rng, noise=4.0))
        results.write(tmp_path)
        (tmp_path / "truth.json").write_text(json.dumps(truth))
        for kind, evaluation in results.evaluations().items():
            with contextlib.redirect_stdout(io.StringIO()):
                coco = COCO(str(tmp_path / "truth.json"))
                expected = COCOeval(coco, coco.loadRes(str(tmp_path / f"results.{kind}.json")), kind)
                expected.evaluate()
                expected.accumulate()
                expected.summarize()
            np.testing.assert_array_equal(evaluation.stats, expected.stats)
            named = figures(evaluation, kind)
            prefix = {"bbox": "box", "segm": "mask"}[kind]
            wanted = {f"{prefix}_{name}": value for name, value in zip(FIGURES, expected.stats, strict=True)}
            assert named == {name: value for name, value in wanted.items() if value >= 0}
            seen.add(round(named[f"{prefix}_ap"], 3))
    assert len(seen) > 30


def test_the_ground_truth_found_is_perfect() -> None:
    rng = np.random.default_rng(0)
    truth = make_truth(rng)
    evaluations = gathered(truth, found_from(truth, rng, noise=0.0)).evaluations()
    for kind, evaluation in evaluations.items():
        found = figures(evaluation, kind)
        assert [value for name, value in found.items() if "_ap" in name] == pytest.approx([1.0] * 6, abs=1e-12)


def test_nothing_found_and_nothing_to_find() -> None:
    truth = make_truth(np.random.default_rng(0))
    images = [each["id"] for each in truth["images"]]
    found = figures(evaluate(truth, [], images, "bbox"), "bbox")
    assert set(found.values()) == {0.0}
    for ids in (images[-1:], []):  # an image without objects; no image at all
        found = figures(evaluate(truth, [], ids, "segm"), "segm")
        assert found == {"mask_ap": 0.0, "mask_ap50": 0.0, "mask_ap75": 0.0}


def test_only_images_that_were_evaluated_count() -> None:
    """As where one cannot be read, and is skipped."""
    rng = np.random.default_rng(0)
    truth = make_truth(rng)
    found = found_from(truth, rng, noise=0.0)
    assert figures(gathered(truth, found[1:]).evaluations()["bbox"], "bbox")["box_ap"] == pytest.approx(1)


class Stand:
    """A model whose answers for an image are in its first pixels: a box for each, of the class 1."""

    def __init__(self, masks: bool) -> None:
        self._masks = masks

    def detect(self, images: jnp.ndarray, sizes: jnp.ndarray) -> Detections:
        batch = len(images)
        boxes = jnp.tile(jnp.array([[10.0, 4.0, 30.0, 44.0], [0, 0, 0, 0]]), (batch, 1, 1))
        valid = jnp.tile(jnp.array([True, False]), (batch, 1))
        ones = jnp.ones((batch, 2, 28, 28)) if self._masks else None
        del sizes
        return Detections(boxes, jnp.where(valid, 0.75, 0.0), valid.astype(jnp.int32), valid, ones)


def batch_of(rows: list[int], scale: tuple[float, float]) -> dict[str, jnp.ndarray]:
    """Two rows, of which those that are not in `rows` are padding."""
    ids = [*rows, *[0] * (2 - len(rows))]
    mask = np.arange(2) < len(rows)
    return {
        "image": jnp.zeros((2, 64, 64, 3), jnp.uint8),
        "size": jnp.where(mask[:, None], jnp.array([[60, 60]]), 0),
        "scale": jnp.tile(jnp.array([scale], jnp.float32), (2, 1)),
        "original": jnp.tile(jnp.array([SIZE], jnp.int32), (2, 1)),
        "id": jnp.array(ids, jnp.int32),
        "mask": jnp.array(mask),
    }


@pytest.mark.parametrize("masks", [False, True])
def test_a_pass_over_batches(masks: bool, tmp_path: Path) -> None:
    """Rows of padding are left out, boxes are scaled back to each image's own pixels, and the files say so."""
    truth = make_truth(np.random.default_rng(0))
    kinds = KINDS if masks else KINDS[:1]
    evaluator = DetectionEvaluator(truth, kinds, tmp_path / "run")
    model = Stand(masks)
    batches = [batch_of([i], (0.5, 0.4)) for i in range(MAX_IN_FLIGHT)] + [batch_of([4, 5], (0.5, 0.4))]
    for batch in batches:
        evaluator.update(evaluator.step(model, batch), batch)
    final = evaluator.result()
    assert final["examples"] == MAX_IN_FLIGHT + 2
    assert list(final)[:3] == ["box_ap", "box_ap50", "box_ap75"]
    assert ("mask_ap" in final) == masks
    entries = json.loads((tmp_path / "run" / "results.bbox.json").read_text())
    assert [entry["image_id"] for entry in entries] == [20, 21, 24, 25]
    assert {(entry["category_id"], entry["score"]) for entry in entries} == {(3, 0.75)}
    assert entries[0]["bbox"] == pytest.approx([25, 8, 50, 80], rel=1e-6)
    assert (tmp_path / "run" / "results.segm.json").exists() == masks
    if masks:
        rle = json.loads((tmp_path / "run" / "results.segm.json").read_text())[0]["segmentation"]
        assert rle == rectangle([25, 8, 50, 80])


def test_a_folder_that_cannot_be_written_keeps_the_figures(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    evaluator = DetectionEvaluator(make_truth(np.random.default_rng(0)), ("bbox",), tmp_path / "file" / "run")
    batch = batch_of([0], (1.0, 1.0))
    evaluator.update(evaluator.step(Stand(False), batch), batch)
    with pytest.warns(UserWarning, match=r"^the results are not written: .*file"):
        assert evaluator.result()["examples"] == 1
