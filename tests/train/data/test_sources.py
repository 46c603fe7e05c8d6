import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tests.support.classification import make_task
from train.data.sources import open_source
from train.task import DatasetInfo
from train.tasks.classification.config import ClassificationDataConfig
from twins_jax.errors import InputError

FEATURES = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["cat", "dog"])}


class Tiny(tfds.core.GeneratorBasedBuilder):
    """One example per split; its gray level is the position of the split."""

    VERSION = tfds.core.Version("1.2.0")
    features: dict[str, Any] = FEATURES
    splits = ("train", "validation", "test")
    label: Any = "dog"

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self.features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:  # noqa: ARG002
        return {split: self._generate_examples(level) for level, split in enumerate(self.splits)}

    def _generate_examples(self, level: int) -> Any:
        image = Image.fromarray(np.full((4, 5, 3), level, np.uint8))
        yield 0, {name: self.label if name == "label" else image for name in self.features}


def prepare(data_dir: Path, **attributes: Any) -> ClassificationDataConfig:
    builder_class = type("Tiny", (Tiny,), attributes, skip_registration=True)
    builder_class(data_dir=str(data_dir)).download_and_prepare(file_format="array_record")
    return ClassificationDataConfig(source="tiny", dir=str(data_dir))


@pytest.mark.parametrize("name", ["tiny", "tiny:1.2.0", "tiny:1.*.*"])
def test_tfds_set(tmp_path: Path, name: str) -> None:
    prepare(tmp_path)
    config = ClassificationDataConfig(source=name, dir=str(tmp_path))
    assert make_task(config).info == DatasetInfo(2, ("cat", "dog"), 1, 1)
    record = open_source(config, "train")[0]
    assert (record["label"], record["name"]) == (1, "tiny/1.2.0 train[0]")
    assert record["image"].startswith(b"\x89PNG")
    assert open_source(config, "eval")[0]["name"] == "tiny/1.2.0 validation[0]"


def test_eval_is_test_without_validation(tmp_path: Path) -> None:
    config = prepare(tmp_path, splits=("train", "test"))
    assert open_source(config, "eval")[0]["name"] == "tiny/1.2.0 test[0]"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("imagenet2012", "python -m train.prepare imagenet2012 --tars DIR"),
        ("imagenet2012:5.1.0", "python -m train.prepare imagenet2012 --tars DIR"),
        ("no_such_set", "tfds build no_such_set"),
    ],
)
def test_set_that_is_not_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, command: str) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    start = time.perf_counter()
    with pytest.raises(InputError, match=rf"^data\.source: {name} is not prepared in {tmp_path}.*`{command}"):
        open_source(ClassificationDataConfig(source=name, dir=str(tmp_path)), "train")
    assert time.perf_counter() - start < 2


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    config = ClassificationDataConfig(source="tiny", dir=str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"^data\.dir='.*none': must be an existing folder, of TFDS data sets$"):
        open_source(config, "train")


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_a_damaged_description_is_named(tmp_path: Path, name: str) -> None:
    config = prepare(tmp_path)
    next(tmp_path.rglob(name)).write_text("{")
    with pytest.raises(InputError, match=r"^data\.source: 'tiny' in .* cannot be read: .*Expecting property name"):
        open_source(config, "train")


def test_version_that_is_not_prepared(tmp_path: Path) -> None:
    prepare(tmp_path)
    with pytest.raises(InputError, match=r"^data\.source: tiny:3\.0\.0 is not prepared"):
        open_source(ClassificationDataConfig(source="tiny:3.0.0", dir=str(tmp_path)), "train")


def test_without_tfds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "train.data.tfds", raising=False)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    message = (
        r"^data\.source: tiny is read by tensorflow_datasets, and tensorflow_datasets is not installed; install it"
    )
    with pytest.raises(InputError, match=message):
        open_source(ClassificationDataConfig(source="tiny", dir=str(tmp_path)), "train")


def test_impossible_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data\.source: 'image net'"):
        open_source(ClassificationDataConfig(source="image net", dir=str(tmp_path)), "train")


def test_format_without_random_access(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    path = tmp_path / "tiny/1.2.0/dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(InputError, match=r"stored as tfrecord; random access needs array_record"):
        open_source(config, "train")


@pytest.mark.parametrize("missing", ["image", "label"])
def test_missing_feature(tmp_path: Path, missing: str) -> None:
    others = {name: feature for name, feature in FEATURES.items() if name != missing}
    config = prepare(tmp_path, features={**others, "mask": tfds.features.Image()})
    with pytest.raises(InputError, match=r"has the features .*mask; 'image' \(Image\) and 'label' \(ClassLabel\)"):
        open_source(config, "train")


def test_missing_split(tmp_path: Path) -> None:
    config = prepare(tmp_path, splits=("train",))
    with pytest.raises(InputError, match=r"has the splits train; validation or test is needed"):
        open_source(config, "eval")


def test_unlabeled_example(tmp_path: Path) -> None:
    source = open_source(prepare(tmp_path, label=-1), "eval")
    with pytest.raises(InputError, match=r"^tiny/1\.2\.0 validation\[0\]: has no label"):
        source[0]


def test_label_out_of_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(prepare(tmp_path), "train")
    monkeypatch.setattr(source, "class_names", ("cat",))  # TFDS itself writes no other labels
    with pytest.raises(InputError, match=r"^tiny/1\.2\.0 train\[0\]: has the label 1; must be from 0 to 0$"):
        source[0]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (0, "cannot be read: ArrayRecord file should be"),
        (65536, r"(cannot be read: .*|is empty)"),
        (None, "cannot be read: Corrupted Riegeli/records file"),
        (-1, r"cannot be read: open\(\) failed: No such file"),
    ],
)
def test_damaged_file(tmp_path: Path, keep: int | None, message: str) -> None:
    config = prepare(tmp_path)
    (file,) = tmp_path.glob("tiny/1.2.0/*-train.*")
    data = bytearray(file.read_bytes())
    if keep is None:
        data[65600] ^= 0xFF
    if keep == -1:
        file.unlink()
    else:
        file.write_bytes(data[:keep])
    with pytest.raises(InputError, match=rf"^tiny/1\.2\.0 train\[0\]: {message}"):
        open_source(config, "train")[0]
