"""`data.multi_label` of a folder: the labels of each image stand in a file."""

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.data.metadata import MetadataSource
from train.data.sources import open_source
from train.tasks.classification.config import ClassificationDataConfig
from twins_jax.errors import InputError

TRAIN = {"a/1.png": ["dog", "cat"], "2.png": [], "ü.png": ["Käse"], "b.png": ["dog", "dog"]}
EVAL = {"v.png": ["cat"]}


def write(folder: Path, rows: dict[str, list[str]], name: str = "metadata.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".csv"):
        lines = ["\ufefffile_name,labels", *(f'"{path}","{" | ".join(labels)}"' for path, labels in rows.items())]
    else:
        lines = [json.dumps({"file_name": path, "labels": labels, "other": 1}) for path, labels in rows.items()]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for path in rows:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(os.fsencode(path))
    return folder


@pytest.fixture(params=["metadata.jsonl", "metadata.csv"])
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    write(tmp_path / "train", TRAIN, request.param)
    write(tmp_path / "val", EVAL, request.param)
    return tmp_path


def test_labels_of_each_image_in_the_order_of_the_file(root: Path) -> None:
    config = ClassificationDataConfig(source="folder", dir=str(root), multi_label=True)
    train: Any = pickle.loads(pickle.dumps(open_source(config, "train", multi_label=True)))
    assert train.class_names == ("Käse", "cat", "dog")
    assert [(r["image"], r["name"]) for r in map(train.__getitem__, range(len(train)))] == [
        (os.fsencode(name), f"{root}/train/{name}") for name in TRAIN
    ]
    expected = np.array([[0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]], bool)
    np.testing.assert_array_equal(np.stack([train[i]["label"] for i in range(4)]), expected)
    with pytest.raises(IndexError):
        train[4]
    evaluation = MetadataSource(root, train=False)
    assert evaluation.class_names == train.class_names
    np.testing.assert_array_equal(evaluation[0]["label"], [False, True, False])


def test_image_that_is_missing_is_named_when_it_is_read(root: Path) -> None:
    (root / "train" / "2.png").unlink()
    with pytest.raises(InputError, match=rf"^{root}/train/2.png: cannot be read: No such file"):
        MetadataSource(root, train=True)[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.jsonl", "", "train/metadata.jsonl: lists no image"),
        ("metadata.jsonl", "\n\n{", "train/metadata.jsonl, line 3: is no JSON: "),
        ("metadata.jsonl", "[" * 100_000, "train/metadata.jsonl, line 1: is no JSON: "),
        ("metadata.jsonl", "[]", "line 1: must hold a JSON object, holds list"),
        ("metadata.jsonl", '{"labels": ["x"]}', "line 1: file_name must be the path of an image"),
        ("metadata.jsonl", '{"file_name": 3, "labels": []}', "line 1: file_name must be the path of an image"),
        ("metadata.jsonl", '{"file_name": "a\\u0000"}', "line 1: file_name must be the path of an image"),
        ("metadata.jsonl", '{"file_name": "\\ud800.png"}', "line 1: file_name must be the path of an image"),
        ("metadata.jsonl", '{"file_name": "a", "labels": "x"}', "line 1: labels must be a list of names"),
        ("metadata.jsonl", '{"file_name": "a", "labels": [1]}', "line 1: labels must be a list of names"),
        ("metadata.jsonl", '{"file_name": "a", "labels": [""]}', "line 1: labels must be a list of names"),
        ("metadata.jsonl", '{"file_name": "a"}', "line 1: labels must be a list of names"),
        ("metadata.jsonl", 2 * '{"file_name": "a", "labels": []}\n', "line 2: a stands twice"),
        ("metadata.jsonl", '{"file_name": "a", "labels": []}', "train: no image has a label"),
        ("metadata.jsonl", b"\xff\xfe", "train/metadata.jsonl: is no text in UTF-8: "),
        ("metadata.csv", "", "train/metadata.csv: must have the columns file_name and labels; has none"),
        ("metadata.csv", "file,label\na,b\n", "must have the columns file_name and labels; has file, label"),
        ("metadata.csv", "file_name,labels\n,b\n", "line 2: file_name must be the path of an image"),
        ("metadata.csv", "file_name,labels\n" + "x" * 200_000, "line 2: field larger than field limit"),
        ("metadata.csv", "file_name,labels,labels\na,b,c\n", "file_name and labels; has file_name, labels, labels"),
        ("metadata.csv", "file_name,labels\na,b\nc,d,e\n", "line 3: must have 2 cells, .* separated by '|'"),
        ("metadata.csv", "file_name,labels\na,b\nc\n", "line 3: must have 2 cells"),
        ("metadata.csv", 'file_name,labels\na,"b\nc,d\n', "line 2: unexpected end of data"),
        ("labels.json", "{}", r"train: must hold metadata.jsonl or metadata.csv for data.multi_label; .* labels.json$"),
    ],
)
def test_damaged_files_are_one_line(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        MetadataSource(tmp_path, train=True)
    assert str(caught.value).startswith(str(tmp_path / "train"))
    assert "\n" not in str(caught.value)


def test_files_that_contradict_each_other(root: Path) -> None:
    write(root / "val", {"v.png": ["cow", "cot"]})
    (root / "val" / "metadata.csv").unlink(missing_ok=True)
    message = f"{root}/val: v.png has the label 'cot', which no image of {root}/train has; did you mean cat?"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        MetadataSource(root, train=False)
    write(root / "val", EVAL, "metadata.csv")
    with pytest.raises(InputError, match=r"val: holds metadata.jsonl and metadata.csv; must hold one of them$"):
        MetadataSource(root, train=False)
