"""The command with a segmenter: lines, JSON, the page and the masks."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image, PngImagePlugin

from tests.predict.test_predict import Page, refused, run
from tests.support.images import picture, saved
from tests.support.models import NANO, random_module
from twins_jax import SegmentationPreprocessing, TwinsSegmenter, predict, segment
from twins_jax.mask_files import mask_files, write_mask
from twins_jax.segmentation.palette import PALETTE, overlay

NAMES = ["land", "<road>", "wat\ner"]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> TwinsSegmenter:
    """The segmenter that any file of weights holds for the command."""
    segmenter = random_module(lambda: TwinsSegmenter(NANO, "semantic_fpn", 3, rngs=nnx.Rngs(0)))
    segmenter.preprocessing, segmenter.class_names = SegmentationPreprocessing(32, 64), NAMES
    monkeypatch.setattr(predict, "model_from_pretrained", lambda *_, **__: segmenter)
    return segmenter


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photographs of one shape, two of which have the same name in different folders."""
    folder = tmp_path / "photos"
    for number, name in enumerate(("train/a.jpg", "val/a.jpg", "val/b.jpg")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(saved(picture(72 + 36 * number, 48 + 24 * number, number), "JPEG"))
    return folder


def test_lines_json_page_and_masks(
    model: TwinsSegmenter, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "val" / "a2.jpg").write_bytes(b"hello")
    (photos / "val" / "narrow.png").write_bytes(saved(picture(10, 200), "PNG"))
    files = [photos / name for name in ("train/a.jpg", "val/a.jpg", "val/b.jpg")]
    expected = segment(model, files)
    shares = [np.bincount(labels.ravel(), minlength=3) / labels.size for labels in expected]
    orders = [[label for label in np.argsort(-each) if each[label]] for each in shares]
    out = tmp_path / "out"
    code, lines, errors = run(capsys, "w.pth", photos, "--out", out)
    assert code == 1
    shown = ["land", "<road>", r"'wat\ner'"]
    assert lines == [
        f"{file}: {', '.join(f'{shown[label]} {each[label]:.1%}' for label in order)}"
        for file, each, order in zip(files, shares, orders, strict=True)
    ]
    assert [line.split(": ")[:2] for line in errors] == [
        ["skipped", str(photos / "val" / name)] for name in ("a2.jpg", "narrow.png")
    ]
    assert errors[1].endswith(
        "picture='10 x 200 pixels': must be 32 pixels or more both ways when resized, here to 3 x 64"
    )

    page = Page((out / "index.html").read_text())
    assert all(each.all() for each in shares)
    assert set(page.links) == {"data:image/"}
    assert len(page.pictures) == 6
    for photo, colored, labels in zip(page.pictures[::2], page.pictures[1::2], expected, strict=True):
        pixels = np.asarray(photo.convert("RGB"))
        nearest = [np.arange(side) * given // side for side, given in zip(pixels.shape[:2], labels.shape, strict=True)]
        np.testing.assert_array_equal(np.asarray(colored.convert("RGB")), overlay(pixels, labels[np.ix_(*nearest)]))
    after = next(i for i, text in enumerate(page.texts) if text.startswith("3 images, each beside its classes."))
    assert page.texts[after + 1 : after + 5] == [*NAMES, str(files[0])]  # the legend

    for file, labels in zip(files, expected, strict=True):
        with Image.open(out / "masks" / file.relative_to(photos).with_suffix(".png")) as mask:
            assert mask.mode == "P"
            np.testing.assert_array_equal(np.asarray(mask), labels)
            np.testing.assert_array_equal(np.asarray(mask.convert("RGB")), PALETTE[labels])

    code, lines, _ = run(capsys, "w.pth", *files[:2], "--out", out, "--json", "--topk", 1)  # over its own files
    assert code == 0
    for line, file, each, order in zip(lines, files, shares, orders, strict=False):
        share = {"label": order[0], "name": NAMES[order[0]], "share": each[order[0]]}
        mask = out / "masks" / file.parent.name / "a.png"
        assert json.loads(line) == {"file": str(file), "shares": [share], "mask": str(mask)}
    assert "mask" not in json.loads(run(capsys, "w.pth", files[0], "--json")[1][0])


@pytest.mark.usefixtures("model")
def test_masks_of_others_stay(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = tmp_path / "out" / "masks" / "val" / "a.png"
    drawn.parent.mkdir(parents=True)
    for content in (saved(picture(9, 9), "PNG"), b"no image"):
        drawn.write_bytes(content)
        error = refused(capsys, "w.pth", photos, "--out", tmp_path / "out")
        assert error == f"error: {drawn}: exists and is no mask of twins_jax: remove it, or choose another folder"
        assert drawn.read_bytes() == content
    error = refused(capsys, "w.pth", drawn, "--out", tmp_path / "out")
    assert error == (
        f"error: {drawn}: is in {tmp_path / 'out' / 'masks'}, where masks are written: choose another folder for --out"
    )


def test_names_of_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def names(*images: str) -> list[str]:
        found = mask_files(Path("masks"), images)
        assert list(found) == list(dict.fromkeys(images))
        return [str(file) for file in found.values()]

    assert names("a.jpg") == ["masks/a.png"]
    assert names("x/a.jpg", "x/y/a.jpg", "x/./b.c.jpg") == ["masks/a.png", "masks/y/a.png", "masks/b.c.png"]
    assert names("a.jpg", "a.png") == ["masks/a.jpg.png", "masks/a.png.png"]
    assert names("a.jpg", "A.JPG") == ["masks/a.jpg.png", "masks/A.JPG.png"]
    assert names("../a.jpg", str(tmp_path / "b.jpg")) == ["masks/a.png", f"masks/{tmp_path.name}/b.png"]
    assert names("a.jpg", "./a.jpg") == ["masks/a.png", "masks/a.png"]


def test_masks_of_many_classes(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 1000, (5, 7), np.int32)
    write_mask(tmp_path / "new" / "mask.png", labels)
    with Image.open(tmp_path / "new" / "mask.png") as mask:
        assert isinstance(mask, PngImagePlugin.PngImageFile)
        np.testing.assert_array_equal(np.asarray(mask), labels)
