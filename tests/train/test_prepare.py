import importlib.util
import io
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.classification import make_task
from tests.support.imagenet import jpeg, write_tars
from train import prepare
from train.data.sources import open_source
from train.tasks.classification.config import ClassificationDataConfig

CLASSES = {"n01440764": 3, "n01530575": 2}  # the classes 0 and 10, and the number of images of each


def image(level: int) -> bytes:
    return jpeg(np.full((5, 6, 3), level, np.uint8))


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Gray images: 100 and up for training, 1 to 3 for validation."""
    folder = tmp_path / "tars"
    train = {name: [image(100 + 10 * c + i) for i in range(count)] for c, (name, count) in enumerate(CLASSES.items())}
    write_tars(folder, train, {number: image(number) for number in (3, 1, 2)})
    return folder


def test_imagenet(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorflow", reason="preparing imagenet2012 needs TensorFlow (the extra `prepare`)")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    data_dir = tmp_path / "data"
    for _ in range(2):  # the second time it is done already
        assert prepare.main(["imagenet2012", "--tars", str(tars), "--data_dir", str(data_dir)]) == 0
        assert capsys.readouterr().out.endswith(f"imagenet2012 is in {data_dir}/imagenet2012/5.1.0\n")

    config = ClassificationDataConfig(source="imagenet2012", dir=str(data_dir))
    info = make_task(config).info
    assert (info.num_classes, info.train_examples, info.eval_examples) == (1000, 5, 3)
    assert contents(config, "train") == [(100, 0), (101, 0), (102, 0), (110, 10), (111, 10)]
    # The labels of the first three validation images, as the challenge's development kit lists them.
    assert [info.class_names[label] for _, label in contents(config, "eval")] == ["n01751748", "n09193705", "n02105855"]
    assert [level for level, _ in contents(config, "eval")] == [1, 2, 3]


def contents(config: ClassificationDataConfig, split: Any) -> list[tuple[int, int]]:
    source = open_source(config, split)
    records = [source[index] for index in range(len(source))]
    return sorted((Image.open(io.BytesIO(r["image"])).getpixel((0, 0))[0], r["label"]) for r in records)


@pytest.mark.parametrize("missing", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
def test_missing_tar(tars: Path, capsys: pytest.CaptureFixture[str], missing: str) -> None:
    (tars / missing).unlink()
    assert prepare.main(["imagenet2012", "--tars", str(tars)]) == 2
    assert capsys.readouterr().err.startswith(f"error: tars={str(tars)!r}: must be a folder with {missing}, from ")


def test_missing_tensorflow(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert prepare.main(["imagenet2012", "--tars", str(tars), "--data_dir", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: dataset: preparing imagenet2012 needs TensorFlow")
    assert "install tensorflow-cpu (the extra `prepare`)" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "arguments", [[], ["imagenet2012"], ["cifar10", "--tars", "."], ["imagenet2012", "--tar", "x"]]
)
def test_bad_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
