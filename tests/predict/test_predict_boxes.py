"""The command with a detector: lines, JSON with masks, and the page."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.predict.test_predict import Page, refused, run
from tests.support.stand_in_detector import RECTANGLES, ColorBoxDetector, ColorDetector, color_detector, photograph
from twins_jax import Detection, detect, page, predict
from twins_jax.answers import Objects
from twins_jax.segmentation.palette import PALETTE

NAMES = ["<red>", "gr\neen", "blue"]


def loaded(monkeypatch: pytest.MonkeyPatch, kind: type[ColorDetector]) -> ColorDetector:
    """The detector that any file of weights holds for the command."""
    detector = color_detector(kind)
    detector.class_names = NAMES
    monkeypatch.setattr(predict, "model_from_pretrained", lambda *_, **__: detector)
    return detector


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photographs with all colors, with one, and with none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colors in (("a.png", "rgb"), ("b.png", "b"), ("c.png", "")):
        Image.fromarray(photograph(90, 53, colors)).save(folder / name)
    return folder


def test_lines_and_page(
    monkeypatch: pytest.MonkeyPatch, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded(monkeypatch, ColorDetector)
    Image.fromarray(photograph(900, 530)).save(photos / "d.png")
    (photos / "broken.jpg").write_bytes(b"hello")
    thumbnails: list[np.ndarray] = []  # before JPEG blurs them

    def thumbnail(pixels: np.ndarray, side: int) -> str:
        thumbnails.append(pixels)
        return make_thumbnail(pixels, side)

    make_thumbnail = page.thumbnail
    monkeypatch.setattr(page, "thumbnail", thumbnail)
    out = tmp_path / "out"
    code, lines, errors = run(capsys, "w.pth", photos, "--out", out)
    assert code == 1
    assert lines == [
        rf"{photos / 'a.png'}: 1 'gr\neen', 1 blue, 1 <red>",
        f"{photos / 'b.png'}: 1 blue",
        f"{photos / 'c.png'}: nothing",
        rf"{photos / 'd.png'}: 1 'gr\neen', 1 blue, 1 <red>",
    ]
    assert [line.split(": ")[:2] for line in errors] == [["skipped", str(photos / "broken.jpg")]]

    shown = Page((out / "index.html").read_text())
    assert set(shown.links) == {"data:image/"}
    start = next(i for i, text in enumerate(shown.texts) if text.startswith("4 images, each with the objects in it."))
    assert shown.texts[start + 1 : start + 11] == [
        *(*NAMES, str(photos / "a.png")),
        *("1 gr\neen", "1 blue", "1 <red>"),
        *(str(photos / "b.png"), "1 blue", str(photos / "c.png")),
    ]
    assert [picture.size for picture in shown.pictures] == [(113, 192)] * 4  # the network's
    drawn, plain = thumbnails[3], photograph(192, 113)
    for label, (x1, y1, x2, y2) in enumerate(RECTANGLES * 192 / 90):
        y = round(y1 + 0.8 * (y2 - y1))  # below captions
        inside, outside = (round(x1 + share * (x2 - x1)) for share in (0.25, 0.75))  # of the mask, the left half
        assert np.abs(drawn[y, inside] - (0.6 * plain[y, inside] + 0.4 * PALETTE[label])).max() <= 2
        np.testing.assert_array_equal(drawn[y, outside], plain[y, outside])
        outline = np.flatnonzero((drawn[y] == PALETTE[label]).all(axis=-1))
        assert np.abs(outline[[0, -1]] - [x1, x2 - 1]).max() < 2


def test_json(monkeypatch: pytest.MonkeyPatch, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = pytest.importorskip("pycocotools.mask", reason="the extra detection is not installed")
    model = loaded(monkeypatch, ColorDetector)
    code, lines, errors = run(capsys, "w.pth", photos, "--json", "--score_threshold", 0.5)
    assert (code, errors) == (0, [])
    files = [photos / name for name in ("a.png", "b.png", "c.png")]
    counts = []
    for line, file, objects in zip(lines, files, detect(model, files, score_threshold=0.5), strict=True):
        found = json.loads(line)
        assert found.keys() == {"file", "objects"}
        assert found["file"] == str(file)
        counts.append(len(objects))
        for each, expected in zip(found["objects"], objects, strict=True):
            np.testing.assert_array_equal(mask.decode(each.pop("mask")), expected.mask)
            assert each == {
                "label": expected.label,
                "name": NAMES[expected.label],
                "score": expected.score,
                "box": list(expected.box),
            }
    assert counts == [2, 1, 0]


def test_json_without_masks(monkeypatch: pytest.MonkeyPatch, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded(monkeypatch, ColorBoxDetector)
    monkeypatch.setattr("twins_jax.extra.find_spec", lambda _: None)
    code, lines, _ = run(capsys, "w.pth", photos / "b.png", "--json")
    assert code == 0
    assert json.loads(lines[0])["objects"][0].keys() == {"label", "name", "score", "box"}
    loaded(monkeypatch, ColorDetector)
    error = refused(capsys, "w.pth", photos / "b.png", "--json")
    assert error == "error: w.pth: --json with masks needs pycocotools; install twins_jax with its extra `detection`"
    assert run(capsys, "w.pth", photos / "b.png")[0] == 0


def test_the_commonest_classes_are_named() -> None:
    labels = [2, 0, 1, 0, 1, 0, 3]
    found = [Detection(label, "", 0.9, (0.0, 0.0, 1.0, 1.0), (9, 9), None) for label in labels]
    text = Objects(found, np.zeros((9, 9, 3), np.uint8), ("a", "b", "c", "d"), 3).to_text()
    assert text == "3 a, 2 b, 1 c"  # of equals the one of the highest score, which comes first


@pytest.mark.parametrize("value", ["-0.1", "1.5", "nan"])
def test_thresholds_out_of_range(value: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, "w.pth", photos, f"--score_threshold={value}")
    assert error == f"error: --score_threshold={float(value)}: must be from 0 to 1"
