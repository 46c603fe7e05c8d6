import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from tests.support import detection
from tests.support.segmentation import make_folder
from train.benchmark import input_pipeline


def test_small_run(timm: ModuleType, tmp_path: Path) -> None:  # noqa: ARG001 - runs in a process of its own
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 256, (60, 50, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.jpg")
    out = tmp_path / "new" / "out.json"
    # In a process of its own, because it pins itself to one core.
    command = [sys.executable, "-m", "train.benchmark.input_pipeline", str(tmp_path / "images"), "--passes", "2"]
    root = Path(__file__).parents[3]
    result = subprocess.run([*command, "--out", str(out)], cwd=root, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in result.stdout.splitlines()[2:]] == ["train", "eval"]
    figures = json.loads(out.read_text())
    assert figures["images"] == 6
    for name in ("train", "eval"):
        ours, theirs, ratios = (figures[name][key] for key in ("images_per_second", "timm_images_per_second", "ratio"))
        assert len(ours) == 2
        assert min(ours + theirs) > 0
        assert ratios == pytest.approx([a / b for a, b in zip(ours, theirs, strict=True)])


def test_crops_of_segmentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr("os.sched_setaffinity", raising=False)
    out = tmp_path / "out.json"
    root = make_folder(tmp_path / "data")
    assert input_pipeline.main([str(root), "--task", "segmentation", "--passes", "2", "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("6 images with masks, one core; crops/s of training: median (quartiles")
    rates = json.loads(out.read_text())["train"]["crops_per_second"]
    assert len(rates) == 2
    assert min(rates) > 0
    assert input_pipeline.main([str(root / "masks"), "--task", "segmentation"]) == 2
    assert "classes.json: cannot be read: No such file" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*annotations that training leaves out")
def test_images_of_detection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr("os.sched_setaffinity", raising=False)
    out = tmp_path / "out.json"
    root = detection.make_folder(tmp_path / "data")
    command = [str(root), "--task", "detection", "--passes", "2", "--out", str(out)]
    assert input_pipeline.main(command) == 0
    assert capsys.readouterr().out.startswith("5 images with boxes and masks, one core; images/s of training: median")
    assert min(json.loads(out.read_text())["train"]["images_per_second"]) > 0
    path = root / "annotations" / "train.json"
    path.write_text(path.read_text().replace('"segmentation"', '"none"'))
    assert input_pipeline.main(command) == 0
    assert capsys.readouterr().out.startswith("5 images with boxes, one core; images/s of training: median")


def test_bad_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr("os.sched_setaffinity", raising=False)
    assert input_pipeline.main(["none"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert input_pipeline.main([".", "--passes", "1"]) == 2
    assert capsys.readouterr().err.startswith("error: passes=1: must be ")
