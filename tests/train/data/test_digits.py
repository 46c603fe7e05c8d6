import io
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from train.data.digits import TwinsDigits, prepare_digits
from train.data.sources import DatasetInfo, dataset_info, open_source
from train.tasks.classification.config import ClassificationDataConfig


def pixels(record: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(record["image"])))


def test_splits_hold_all_of_scikit_learns_digits(digits_dir: Path) -> None:
    config = ClassificationDataConfig(dir=str(digits_dir))
    train, test = open_source(config, "train"), open_source(config, "eval")
    assert dataset_info(config) == DatasetInfo(10, tuple("0123456789"), 1442, 355)

    digits = load_digits()
    seen = Counter[int]()
    train_index = test_index = 0
    for values, label in zip(digits.images, digits.target, strict=True):
        seen[label] += 1
        if seen[label] % 5:
            record, train_index = train[train_index], train_index + 1
        else:
            record, test_index = test[test_index], test_index + 1
        assert record["label"] == label
        assert pixels(record).dtype == np.uint8
        np.testing.assert_array_equal(pixels(record), np.rint(values / 16 * 255))
        np.testing.assert_array_equal(np.rint(pixels(record) / 255 * 16), values)
    assert (train_index, test_index) == (len(train), len(test))

    counts = Counter(test[i]["label"] for i in range(len(test)))
    assert counts == {label: count // 5 for label, count in seen.items()}


def test_prepared_once(digits_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TwinsDigits, "__init__", None)
    assert len(open_source(ClassificationDataConfig(dir=str(digits_dir)), "train")) == 1442


def test_default_cache_folder(digits_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: digits_dir / (".." if name != "twins_jax" else ""))
    monkeypatch.setattr(TwinsDigits, "__init__", None)
    assert len(open_source(ClassificationDataConfig(), "train")) == 1442


def test_interrupted_preparation_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: TwinsDigits, test: bool) -> Iterator[Any]:
        yield from list(generate(self, test))[:100]
        raise KeyboardInterrupt

    generate = TwinsDigits._generate_examples
    with monkeypatch.context() as patch:
        patch.setattr(TwinsDigits, "_generate_examples", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare_digits(tmp_path)
    assert not list(tmp_path.rglob("*.array_record*"))
    prepare_digits(tmp_path)
    assert len(open_source(ClassificationDataConfig(dir=str(tmp_path)), "train")) == 1442


def test_two_processes_prepare_at_once(digits_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def beaten(self: TwinsDigits, test: bool) -> Iterator[Any]:
        if test:
            shutil.copytree(digits_dir, tmp_path, dirs_exist_ok=True)
        return generate(self, test)

    generate = TwinsDigits._generate_examples
    monkeypatch.setattr(TwinsDigits, "_generate_examples", beaten)
    directory = prepare_digits(tmp_path)
    assert len(list(directory.glob("*.array_record*"))) == 2
    assert [path.name for path in directory.parent.iterdir()] == ["1.0.0"]


def test_other_write_errors_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(TwinsDigits, "download_and_prepare", full)
    with pytest.raises(OSError, match="no space left"):
        prepare_digits(tmp_path)
