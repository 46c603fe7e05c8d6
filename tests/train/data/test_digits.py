import io
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.support.classification import make_task
from tests.support.paths import ROOT
from train.data import digits as module
from train.data.sources import open_source
from train.task import DatasetInfo
from train.tasks.classification.config import ClassificationDataConfig
from twins_jax.errors import InputError


def pixels(record: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(record["image"])))


def test_splits_hold_all_of_scikit_learns_digits() -> None:
    config = ClassificationDataConfig()
    train, test = open_source(config, "train"), open_source(config, "eval")
    assert make_task(config).info == DatasetInfo(10, tuple("0123456789"), 1442, 355)

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


def test_records_are_named() -> None:
    assert open_source(ClassificationDataConfig(), "train")[3]["name"] == "digits train[3]"
    assert open_source(ClassificationDataConfig(), "eval")[354]["name"] == "digits eval[354]"


def test_a_copy_of_a_worker_process_holds_the_same() -> None:
    source = open_source(ClassificationDataConfig(), "eval")
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[i] for i in range(len(copy))] == [source[i] for i in range(len(source))]


def test_a_folder_is_taken_and_neither_read_nor_written(tmp_path: Path) -> None:
    """Command lines from when the digits were prepared in one."""
    assert len(open_source(ClassificationDataConfig(dir=str(tmp_path / "old")), "train")) == 1442
    assert list(tmp_path.iterdir()) == []


def test_needs_no_library_of_other_data_sets() -> None:
    code = (
        "import sys\nfrom train.tasks.classification.config import ClassificationDataConfig\n"
        "from train.data.sources import open_source\n"
        "open_source(ClassificationDataConfig(), 'train')[0]\n"
        "print(*(name for name in ('tensorflow_datasets', 'array_record') if name in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    module._load.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"^data\.source: digits come with scikit-learn; install it"):
        open_source(ClassificationDataConfig(), "train")
