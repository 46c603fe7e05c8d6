"""The errors that a report shows, and its page for a detector whose answers are known."""

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="needs the extra `detection`")

from train.tasks.detection import report
from train.tasks.detection.prediction import Found
from train.tasks.detection.report import ReportEvaluator, find_errors
from twins_jax import Detections
from twins_jax.detection.masks import encode_rle

CATEGORIES = ({"id": 7, "name": "cat & dog"}, {"id": 3, "name": "<b>"})
LABELS = {7: 0, 3: 1}
SIZE = (80, 100)


def annotation(number: int, image: int, box: list[float], category: int = 7, crowd: int = 0) -> dict[str, Any]:
    x, y, w, h = map(int, box)
    mask = np.zeros((1, *SIZE), bool)
    mask[:, y : y + h, x : x + w] = True
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": crowd,
        "segmentation": encode_rle(mask)[0],
    }


def found(*boxes: tuple[list[float], int, float]) -> Found:
    corners, labels, scores = zip(*boxes, strict=True) if boxes else ((), (), ())
    return Found(
        0,
        np.array(corners, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int32),
        None,
    )


LEFT, RIGHT = [0, 0, 40, 40], [50, 0, 90, 40]
"""x1, y1, x2, y2; as annotations x, y, width and height they are these."""
OF_LEFT, OF_RIGHT = [0.0, 0.0, 40.0, 40.0], [50.0, 0.0, 40.0, 40.0]


@pytest.mark.parametrize(
    ("detections", "annotations", "false", "missed"),
    [
        ([(LEFT, 0, 0.9)], [annotation(1, 1, OF_LEFT)], [False], [False]),
        ([(LEFT, 1, 0.9)], [annotation(1, 1, OF_LEFT)], [True], [True]),  # of another class
        ([(LEFT, 0, 0.2)], [annotation(1, 1, OF_LEFT)], [False], [True]),  # of a score too low to count
        ([(LEFT, 0, 0.5), (LEFT, 0, 0.9)], [annotation(1, 1, OF_LEFT)], [True, False], [False]),  # the better finds it
        ([([0, 0, 40, 19], 0, 0.9)], [annotation(1, 1, OF_LEFT)], [True], [True]),  # an IoU below 0.5
        ([([0, 0, 40, 20], 0, 0.9)], [annotation(1, 1, OF_LEFT)], [False], [False]),
        ([([5, 5, 15, 15], 0, 0.9)], [annotation(1, 1, OF_LEFT, crowd=1)], [False], [False]),  # within a crowd
        ([(RIGHT, 0, 0.9)], [annotation(1, 1, OF_LEFT, crowd=1)], [True], [False]),
        (
            [(RIGHT, 0, 0.4), (LEFT, 0, 0.9)],
            [annotation(1, 1, OF_LEFT), annotation(2, 1, OF_RIGHT)],
            [False, False],
            [False, False],
        ),
        ([], [annotation(1, 1, OF_LEFT)], [], [True]),
        ([(LEFT, 0, 0.9), (LEFT, 0, 0.1)], [], [True, False], []),
    ],
)
def test_errors(detections: Any, annotations: Any, false: list[bool], missed: list[bool]) -> None:
    errors = find_errors(found(*detections), annotations, LABELS)
    assert (errors.false.tolist(), errors.missed.tolist()) == (false, missed)


class Stand:
    """A model that finds, in all images, the left object as the class 0, and one below of the class 1."""

    def __init__(self, masks: bool) -> None:
        self._masks = masks

    def detect(self, images: jnp.ndarray, sizes: jnp.ndarray) -> Detections:
        del sizes
        batch = len(images)
        boxes = jnp.tile(jnp.array([LEFT, [10, 50, 60, 78], [0, 0, 0, 0]], jnp.float32), (batch, 1, 1))
        valid = jnp.tile(jnp.array([True, True, False]), (batch, 1))
        scores = jnp.tile(jnp.array([0.9, 0.6, 0.0]), (batch, 1))
        labels = jnp.tile(jnp.array([0, 1, 0], jnp.int32), (batch, 1))
        return Detections(boxes, scores, labels, valid, jnp.ones((batch, 3, 28, 28)) if self._masks else None)


TRUTH = {
    "images": [{"id": 10 + i, "file_name": f"{i} < 9.png", "height": SIZE[0], "width": SIZE[1]} for i in range(3)],
    "categories": [*CATEGORIES],
    "annotations": [
        annotation(1, 10, OF_LEFT),
        annotation(2, 11, OF_LEFT),
        annotation(3, 11, OF_RIGHT),
        annotation(4, 11, [10.0, 50.0, 50.0, 28.0], category=3),
        annotation(5, 12, [60.0, 50.0, 20.0, 20.0]),
    ],
}
"""Of the detections the one below is right in the second image only; the second and the third image have a miss."""


def write_report(folder: Path, *, masks: bool) -> str:
    evaluator = ReportEvaluator(folder, TRUTH, ("bbox", "segm") if masks else ("bbox",))
    rng = np.random.default_rng(0)
    for rows in ([0, 1], [2]):
        ids = np.array([*rows, 0][:2], np.int32)
        mask = np.arange(2) < len(rows)
        batch = {
            "image": jnp.asarray(rng.integers(0, 256, (2, 96, 128, 3), np.uint8)),
            "size": jnp.where(mask[:, None], jnp.array([SIZE]), 0),
            "scale": jnp.ones((2, 2), jnp.float32),
            "original": jnp.tile(jnp.array([SIZE], jnp.int32), (2, 1)),
            "id": jnp.asarray(ids),
            "mask": jnp.asarray(mask),
        }
        evaluator.update(evaluator.step(Stand(masks), batch), batch)
    assert evaluator.result() == {"examples": 3}
    return (folder / "index.html").read_text()


@pytest.mark.parametrize("masks", [False, True])
def test_page(masks: bool, tmp_path: Path) -> None:
    text = write_report(tmp_path / "report", masks=masks)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert captions == [
        # Most errors first.
        "2 &lt; 9.png: 2 false positives, 1 of 1 objects missed",
        "0 &lt; 9.png: 1 false positives, 0 of 1 objects missed",
        "1 &lt; 9.png: 0 false positives, 1 of 3 objects missed",
        # The surest first: in the third image the left object is none.
        "2 &lt; 9.png: cat &amp; dog, score 90%",
        "0 &lt; 9.png: &lt;b&gt;, score 60%",
        # The largest first.
        "1 &lt; 9.png: cat &amp; dog",
        "2 &lt; 9.png: cat &amp; dog",
    ]
    assert text.count("<img ") == 2 * len(captions)
    assert "<b>" not in text
    rows = re.findall(r"<tr><td>(.*?)<td>(\d+)<td>([\d.]+)%", text)
    # One object, found after a false positive; two of four, found before any.
    assert rows == [("&lt;b&gt;", "1", "50.0"), ("cat &amp; dog", "4", "50.5")]
    assert ("mask AP50" in text) == masks
    assert "of 3 images" in text


def test_only_the_worst_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report, "MAX_SHOWN", 1)
    text = write_report(tmp_path, masks=False)
    assert re.findall(r"<figcaption>(\d)", text) == ["2", "2", "1"]
