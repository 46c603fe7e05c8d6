"""The command: in this process, and once as a process of its own."""

import base64
import html.parser
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import twins_jax
from tests.support.compilation import ENVIRONMENT
from tests.support.images import picture
from tests.support.models import classifier, named
from tests.support.paths import ROOT
from twins_jax import InputError, classify, page, predict
from twins_jax.config import variant_config


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str], list[str]]:
    code = predict.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err.splitlines()


def test_a_line_for_each_image(weights: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, errors = run(capsys, weights, photos, "--batch_size", 2)
    files = [photos / "a.jpg", photos / "b.PNG", photos / "more" / "c.webp"]
    assert (code, errors) == (0, [])
    answers = classify(twins_jax.from_pretrained(weights), files, batch_size=2)
    for line, file, each in zip(lines, files, answers, strict=True):
        assert line == f"{file}: {', '.join(f'{answer.name} {answer.probability:.1%}' for answer in each)}"
    code, first, _ = run(capsys, weights, *files[::-1], "--topk", 1, "--batch_size", 2)
    assert (code, first) == (0, [line.partition(", ")[0] for line in lines[::-1]])


def test_json(own_weights: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, errors = run(capsys, own_weights, photos / "*.*", "--json")
    assert (code, errors) == (0, [])
    files = [photos / "a.jpg", photos / "b.PNG"]
    answers = classify(twins_jax.from_pretrained(own_weights), files)
    for line, file, each in zip(lines, files, answers, strict=True):
        assert line.isascii()
        found = json.loads(line)
        assert found.keys() == {"file", "answers"}
        assert found["file"] == str(file)
        assert [tuple(answer.values()) for answer in found["answers"]] == [tuple(a) for a in each]
        assert [set(answer) for answer in found["answers"]] == [{"label", "name", "probability"}] * 5
        assert [answer["name"] for answer in found["answers"]] == [f'<Käse {answer.label}> & "Öl"' for answer in each]


def test_damaged_images_are_named_and_skipped(weights: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "a2.jpg").write_bytes(b"hello")
    (photos / "b2.jpg").write_bytes((photos / "a.jpg").read_bytes()[:300])
    (photos / "c.jpg").symlink_to("/dev/zero")
    out = photos.parent / "out"
    code, lines, errors = run(capsys, weights, photos, "--batch_size", 2, "--out", out)
    assert code == 1
    assert [line.split(": ")[0] for line in lines] == [str(photos / name) for name in ("a.jpg", "b.PNG", "more/c.webp")]
    assert [line.split(": ")[:2] for line in errors] == [
        ["skipped", str(photos / name)] for name in ("a2.jpg", "b2.jpg", "c.jpg")
    ]
    text = (out / "index.html").read_text()
    assert "3 images" in text
    assert "Not read: 3" in text
    assert f"{photos / 'a2.jpg'}: not a readable image" in text
    # Not one that can be read.
    assert run(capsys, weights, photos / "a2.jpg")[:2] == (1, [])


def test_found_files_may_have_any_name(
    weights: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photos)
    (photos / "a.jpg").rename("~a.jpg")  # no home of a user
    (photos / "b.PNG").rename("new\nline.png")
    (photos / "\x1b.jpg").write_bytes(b"hello")
    code, lines, errors = run(capsys, weights, "*.*g", "--topk", 1)
    assert code == 1
    assert [line.rpartition(": ")[0] for line in lines] == [r"'new\nline.png'", "~a.jpg"]
    assert [line.split(": ")[:2] for line in errors] == [["skipped", '"\\x1b.jpg']]  # sets no terminal's colors


def test_a_bar_on_a_terminal(
    weights: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = run(capsys, weights, photos, "--batch_size", 2)[1]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, same, errors = run(capsys, weights, photos, "--batch_size", 2)
    assert (code, same) == (0, lines)
    assert re.search(r"2/3 \[.*images/s\]", "\r".join(errors))
    assert run(capsys, weights, photos / "a.jpg", photos / "b.PNG", "--batch_size", 2)[2] == []  # one batch


def test_the_choice_of_weights(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []

    def load(source: str, *, requires_head: bool, **choice: object) -> None:
        assert requires_head
        given.extend([source, choice])
        raise InputError("enough")

    monkeypatch.setattr(predict, "model_from_pretrained", load)
    assert refused(capsys, "~/w.pth", photos, "--ema", "--prefix", "model.", "--head", "fc") == "error: enough"
    assert given == [os.path.expanduser("~/w.pth"), {"ema": True, "prefix": "model.", "head": "fc"}]


class Page(html.parser.HTMLParser):
    """The texts of a page's elements by their class or tag, and its pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.pictures: list[Image.Image] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "src":
                data = (value or "").partition("base64,")[2]
                self.pictures.append(Image.open(io.BytesIO(base64.b64decode(data))))
            if name in ("src", "href"):
                self.links.append((value or "")[:11])
        assert tag not in ("script", "link")

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


def test_page(own_weights: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = photos / "<b>&\udce9'\".jpg"
    odd.write_bytes((photos / "a.jpg").read_bytes())
    out = photos.parent / "new" / "out"
    code, _, errors = run(capsys, own_weights, photos, "--out", out, "--batch_size", 2)
    assert (code, errors, os.listdir(out)) == (0, [], ["index.html"])
    found = Page((out / "index.html").read_text(encoding="utf-8"))
    model = twins_jax.from_pretrained(own_weights)
    files = [odd, photos / "a.jpg", photos / "b.PNG", photos / "more" / "c.webp"]
    after = iter(found.texts)
    for file, answers in zip(files, classify(model, files, batch_size=2), strict=True):
        assert str(file).replace("\udce9", "\ufffd") in after
        for answer in answers:
            assert answer.name in after
            assert next(after) == f"{answer.probability:.1%}"
    assert set(found.links) == {"data:image/"}
    assert len(found.pictures) == 4
    for image, file in zip(found.pictures, files, strict=True):
        shown = np.asarray(image.convert("RGB"))
        prepared = predict.ImageClassifier(model, 1).prepare(file)
        np.testing.assert_array_equal(shown, prepared)  # 64 pixels: stored as they are

    before = (out / "index.html").stat().st_mtime_ns
    assert run(capsys, own_weights, photos / "*.jpg", "--out", out)[0] == 0  # its own page is replaced
    assert (out / "index.html").stat().st_mtime_ns > before
    assert "2 images," in (out / "index.html").read_text()


def test_pages_of_others_stay(weights: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photos.parent / "site"
    out.mkdir()
    (out / "index.html").write_text("<h1>My site</h1>")
    code, lines, errors = run(capsys, weights, photos, "--out", out)
    assert (code, lines) == (2, [])
    assert errors == [
        f"error: {out / 'index.html'}: exists and is no page of twins_jax: remove it, or choose another folder"
    ]
    assert (out / "index.html").read_text() == "<h1>My site</h1>"


def test_a_long_page_is_cut(
    own_weights: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "MAX_ON_PAGE", 2)
    assert len(run(capsys, own_weights, photos, "--out", photos, "--batch_size", 2)[1]) == 3
    found = Page((photos / "index.html").read_text())
    assert len(found.pictures) == 2
    assert any("3 images, the first 2 of them below" in text for text in found.texts)


@pytest.mark.parametrize("size", [(300, 400), (64, 10), (65, 65)])
def test_thumbnails(size: tuple[int, int]) -> None:
    pixels = np.asarray(picture(*size))
    [thumbnail] = Page(page.thumbnail(pixels, 224)).pictures
    if max(size) <= 64:
        np.testing.assert_array_equal(np.asarray(thumbnail), pixels)
    else:
        assert thumbnail.format == "JPEG"
        assert max(thumbnail.size) == min(224, max(size))
        reduced = np.asarray(Image.fromarray(pixels).resize(thumbnail.size)).astype(int)
        assert np.abs(np.asarray(thumbnail) - reduced).mean() < 6


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    try:
        code, lines, errors = run(capsys, *arguments)
    except SystemExit as end:
        code, lines, errors = end.code, [], capsys.readouterr().err.splitlines()
    assert (code, lines, len(errors)) == (2, [], 1)
    return errors[0]


def test_refused(
    weights: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(predict, "model_from_pretrained", None)  # all of these before the weights are read
    assert refused(capsys, weights) == "error: the following arguments are required: IMAGE"
    assert refused(capsys, weights, "no.jpg") == "error: no.jpg: no such file or folder"
    assert refused(capsys, weights, "*.jpg") == "error: *.jpg: no such file or folder, and no match"
    assert refused(capsys, weights, "empty").startswith("error: empty: holds no image; extensions are .jpg ")
    assert refused(capsys, weights, photos, "--topk", 0) == "error: --topk=0: must be from 1"
    assert refused(capsys, weights, photos, "--batch_size", -1) == "error: --batch_size=-1: must be from 1"
    assert refused(capsys, weights, photos, "--out", photos / "a.jpg").startswith("error: --out=")
    assert refused(capsys, weights, photos, "--out", photos / "a.jpg" / "b").startswith("error: --out=")
    assert "did you mean --topk?" in refused(capsys, weights, photos, "--topk5", 3)


def test_weights_that_name_no_classes(
    weights: Path, photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert refused(capsys, tmp_path / "none.pth", photos).startswith(f"error: {tmp_path / 'none.pth'}")
    tensors = safetensors.numpy.load_file(weights / "model.safetensors")
    headless = {name: tensor for name, tensor in tensors.items() if not name.startswith("head")}
    backbone = {name: tensor for name, tensor in headless.items() if not name.startswith("norm")}
    renamed = {f"backbone.{name}": tensor for name, tensor in backbone.items()}
    renamed |= {f"fc.{part}": tensors[f"head.{part}"] for part in ("weight", "bias")}
    gray = tensors | {"patch_embeds.0.proj.weight": tensors["patch_embeds.0.proj.weight"][:, :1].copy()}
    for name, kept, message in (
        ("headless", headless, r"num_classes=0: must be from 1: a model without a head names no classes"),
        ("backbone", backbone, r"holds a backbone without a classifier: use backbone_from_pretrained$"),
        ("renamed", renamed, r"holds a backbone without a classifier: use .*; fc has the shape of a classifier's head"),
        ("gray", gray, r"in_channels=1: must be 3: images are read as RGB"),
    ):
        safetensors.numpy.save_file(kept, tmp_path / f"{name}.safetensors")
        error = refused(capsys, tmp_path / f"{name}.safetensors", photos)
        assert re.match(rf"error: {re.escape(str(tmp_path))}/{name}\.safetensors: {message}", error)


def test_as_a_process(photos: Path, tmp_path: Path) -> None:
    """With a cache of its own, from another folder, with images as the shell hands them over."""
    model = classifier(variant_config("twins_svt_tiny"), 1000)
    safetensors.numpy.save_file(named(twins_jax.get_params(model)), tmp_path / "ours.safetensors")
    command = [sys.executable, "-m", "twins_jax.predict", "ours.safetensors", "photos/a.jpg", "photos/more"]
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "caches")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["photos/a.jpg", "photos/more/c.webp"]
    answers, _ = classify(model, [photos / "a.jpg", photos / "more" / "c.webp"])
    assert [answer.name for answer in answers] == [text.rpartition(" ")[0] for text in lines[0][14:].split(", ")]
    compiled = tmp_path / "caches" / "twins_jax" / "compiled"
    assert compiled.stat().st_mode & 0o777 == 0o700
    assert any(path.name.startswith("jit__probabilities") for path in compiled.iterdir())
