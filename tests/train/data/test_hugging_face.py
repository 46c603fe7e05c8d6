"""`data.source=hf:...` on data sets that are made here; nothing is read from the Hub."""

import dataclasses
import io
import json
import pickle
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import twins_jax.extra
from tests.support.classification import eval_batches, train_batches
from train.data.sources import open_source
from train.tasks.classification.config import ClassificationDataConfig
from twins_jax.errors import InputError

datasets = pytest.importorskip("datasets", reason="the extra `hf`")

NAMES = ["ant", "bee", "cat"]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(time, "sleep", lambda _: None)  # before the next try
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def images(encode: Callable[..., bytes], count: int) -> Iterator[dict[str, Any]]:
    """Noise whose red channel is the image's number, with a label that follows from it."""
    rng = np.random.default_rng(count)
    for number in range(count):
        pixels = rng.integers(0, 256, (9, 12, 3), np.uint8)
        pixels[..., 0] = number
        yield {"img": {"bytes": encode(pixels), "path": None}, "id": number, "label": number % 3}


@pytest.fixture(scope="module")
def whole(encode: Callable[..., bytes]) -> Any:
    features = datasets.Features(
        {"id": datasets.Value("int64"), "img": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    )
    splits = {"test": 5, "train": 20, "validation": 11}
    return datasets.DatasetDict(
        {name: datasets.Dataset.from_list([*images(encode, count)], features) for name, count in splits.items()}
    )


@pytest.fixture(scope="module")
def saved(whole: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "set"
    whole.save_to_disk(str(folder))
    return folder


def config(folder: Path, **fields: Any) -> ClassificationDataConfig:
    return ClassificationDataConfig(source=f"hf:{folder}", image_size=32, threads=2, **fields)


def records(source: Any) -> list[tuple[int, int, str]]:
    return [
        (int(np.asarray(Image.open(io.BytesIO(r["image"])))[0, 0, 0]), r["label"], r["name"])
        for r in map(source.__getitem__, range(len(source)))
    ]


@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_files_and_labels_in_the_order_of_the_set(kind: str, whole: Any, saved: Path, tmp_path: Path) -> None:
    folder, options = saved, {}
    if kind == "parquet":
        folder, options = tmp_path / "data", {"dir": str(tmp_path / "cache")}
        for name, rows in whole.items():
            rows.to_parquet(str(folder / f"{name}-00000-of-00001.parquet"))
    for split, name, count in (("train", "train", 20), ("eval", "validation", 11)):
        source: Any = open_source(config(folder, **options), split)  # type: ignore[arg-type]
        expected = [(number, number % 3, f"{folder} {name}[{number}]") for number in range(count)]
        assert records(source) == records(pickle.loads(pickle.dumps(source))) == expected
        assert source.class_names == tuple(NAMES)
        with pytest.raises(IndexError):
            source[count]
    assert all(Path(place).is_dir() for place in options.values())  # in the place of the library's own cache


def test_folder_of_images(image_folder: Path, tmp_path: Path) -> None:
    """The library's own reading of class folders, whose files stay where they are, against ours."""
    folder = shutil.copytree(image_folder, tmp_path / "set")
    theirs = open_source(config(folder, dir=str(tmp_path / "cache")), "train")
    ours = open_source(ClassificationDataConfig(source="folder", dir=str(folder)), "train")
    assert theirs.class_names == ours.class_names
    assert [(theirs[i]["image"], theirs[i]["label"]) for i in range(20)] == [
        (ours[i]["image"], ours[i]["label"]) for i in range(20)
    ]
    (folder / "train/class0/03.png").unlink()
    with pytest.raises(InputError, match=r"train/class0/03.png: cannot be read: No such file"):
        theirs[3]


def take(iterator: Any, count: int) -> list[dict[str, np.ndarray]]:
    return [{key: np.array(value) for key, value in next(iterator).items()} for _ in range(count)]


def test_batches_go_on_from_a_position(saved: Path) -> None:
    """Worker processes get the source as a pickle, which `test_files_and_labels...` reads."""
    dataset = train_batches(config(saved), 8)
    expected = take(iter(dataset), 6)
    iterator = iter(dataset)
    take(iterator, 2)
    position = json.loads(json.dumps(iterator.get_state()))
    restored = iter(train_batches(config(saved), 8))
    restored.set_state(position)
    for batch, other in zip(take(restored, 4), expected[2:], strict=True):
        np.testing.assert_array_equal(batch["image"], other["image"])
        np.testing.assert_array_equal(batch["label"], other["label"])


@pytest.mark.filterwarnings("ignore:.*skipped")
def test_damaged_and_missing_images(whole: Any, tmp_path: Path) -> None:
    rows = whole["validation"].cast_column("img", datasets.Image(decode=False)).to_list()
    rows[2]["img"]["bytes"] = rows[2]["img"]["bytes"][:60]
    rows[4]["img"] = None
    rows[6]["label"] = -1
    rows[7]["label"] = None
    damaged = datasets.Dataset.from_list(rows, whole["validation"].features)
    datasets.DatasetDict(train=whole["train"], test=damaged).save_to_disk(str(tmp_path / "set"))
    name = re.escape(f"{tmp_path}/set test")
    source = open_source(config(tmp_path / "set"), "eval")
    for index, message in (
        (4, rf"^{name}\[4\]: has no image$"),
        (6, rf"^{name}\[6\]: has no label$"),
        (7, rf"^{name}\[7\]: has no label$"),
    ):
        with pytest.raises(InputError, match=message):
            source[index]
    with pytest.raises(InputError, match=rf"^{name}\[2\]: not a readable image"):
        list(eval_batches(config(tmp_path / "set"), 4))
    batches = list(eval_batches(config(tmp_path / "set", on_error="skip", max_errors=0.5), 4))
    mask = np.concatenate([batch["mask"] for batch in batches])
    assert np.flatnonzero(mask).tolist() == [0, 1, 3, 5, 8, 9, 10]


def test_several_labels(whole: Any, tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=NAMES)
    features = datasets.Features(
        {"image": datasets.Image(), "thumbnail": datasets.Image(), "objects": datasets.Sequence(label), "main": label}
    )
    files = whole["train"].cast_column("img", datasets.Image(decode=False))["img"]
    rows = [
        {"image": files[i], "thumbnail": files[0], "objects": labels, "main": 1}
        for i, labels in enumerate(([2, 0], [], [1], [0, -1], [None]))
    ]
    split = datasets.Dataset.from_list(rows, features)
    datasets.DatasetDict(train=split, val=split).save_to_disk(str(tmp_path / "set"))
    source = open_source(config(tmp_path / "set", multi_label=True), "eval", multi_label=True)
    labels = np.stack([source[i]["label"] for i in range(3)])
    np.testing.assert_array_equal(labels, np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], bool))
    for i in (3, 4):  # -1 and None stand for labels that are not there
        with pytest.raises(InputError, match=rf"val\[{i}\]: has no label$"):
            source[i]
    assert source[1]["image"] == files[1]["bytes"]  # of the column "image" among others
    assert open_source(config(tmp_path / "set"), "eval")[0]["label"] == 1  # the other column


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda d: d["train"], {}, "holds one split; save a DatasetDict with train and validation or test$"),
        (
            lambda d: type(d)(train=d["train"]),
            {},
            "has the splits train; train and validation or valid or val or test are needed",
        ),
        (
            lambda d: type(d)(test=d["train"]),
            {},
            "has the splits test; train and validation or valid or val or test are",
        ),
        (
            lambda d: type(d)(
                train=d["train"], test=d["train"].cast_column("label", datasets.ClassLabel(names=["bee", "ant", "cat"]))
            ),
            {},
            "has other classes in its split test than in train$",
        ),
        (lambda d: d.remove_columns("img"), {}, r"columns id \(int64\), label \(ClassLabel\); one of type Image is"),
        (lambda d: d.remove_columns("label"), {}, r"columns img \(Image\), id \(int64\); one of type ClassLabel is"),
        (lambda d: d, {"multi_label": True}, "one of type List of ClassLabel is needed$"),
        (lambda d: d, {"label_column": "id"}, r"^data.label_column='id': must be a column of type ClassLabel; "),
    ],
)
def test_sets_of_another_form(
    change: Callable[[Any], Any], options: dict[str, Any], message: str, whole: Any, tmp_path: Path
) -> None:
    change(whole).save_to_disk(str(tmp_path / "set"))
    data = config(tmp_path / "set", **options)
    split: Any = "eval" if "split" in message else "train"
    with pytest.raises(InputError, match=message) as caught:
        open_source(data, split, **options)
    assert "\n" not in str(caught.value)


def test_column_by_name(whole: Any, tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=["x", "y"])
    two = whole.map(lambda row: {"fine": row["id"] % 2, "coarse": 0}, load_from_cache_file=False)
    two = two.remove_columns("label").cast_column("fine", label).cast_column("coarse", label)
    two.save_to_disk(str(tmp_path / "set"))
    with pytest.raises(InputError, match=r"^data.label_column='': must be one of fine, coarse for /"):
        open_source(config(tmp_path / "set"), "train")
    source = open_source(config(tmp_path / "set"), "train", label_column="fine")
    assert [source[i]["label"] for i in range(4)] == [0, 1, 0, 1]
    two.rename_column("fine", "label").save_to_disk(str(tmp_path / "usual"))
    assert open_source(config(tmp_path / "usual"), "train")[1]["label"] == 1


def test_configuration_of_a_set_of_the_hub(whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*names: Any, **options: Any) -> Any:
        asked.append((names, options))
        return whole

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for source in ("hf:OWNER/NAME", "hf:OWNER/NAME:fine"):
        open_source(ClassificationDataConfig(source=source, dir=str(tmp_path)), "train")
    assert asked == [(("OWNER/NAME", name), {"cache_dir": str(tmp_path)}) for name in (None, "fine")]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:./none", "data.source: ./none: no such folder"),
        ("hf:~no_such_user/a", "data.source='~no_such_user/a': must be a path"),
        ("hf:OWNER/NAME", "data.source: OWNER/NAME cannot be loaded: "),
        ("hf:OWNER/NAME:CONFIG", "data.source: OWNER/NAME:CONFIG cannot be loaded: "),
        ("hf:a b/c?", "data.source: a b/c[?] cannot be loaded: "),
        ("hf:{folder}", "data.source: .* cannot be loaded: "),
    ],
)
def test_sets_that_cannot_be_loaded(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text("{")
    data = ClassificationDataConfig(source=source.format(folder=tmp_path), dir=str(tmp_path / "cache"))
    with pytest.raises(InputError, match=f"^{message}") as caught:
        open_source(data, "train")
    assert "\n" not in str(caught.value)


def test_fields() -> None:
    for fields in ({"source": "hf:"}, {"label_column": "x"}, {"multi_label": True}):
        (name,) = fields
        with pytest.raises(InputError, match=rf"^data.{name}="):
            ClassificationDataConfig(**fields)  # type: ignore[arg-type]
    assert dataclasses.replace(ClassificationDataConfig(source="hf:a/b"), label_column="x").dir == ""


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins_jax.extra, "find_spec", lambda _: None)
    message = "data.source hf:a/b needs datasets; install twins_jax with its extra `hf`"
    with pytest.raises(InputError, match=f"^{message}$"):
        open_source(ClassificationDataConfig(source="hf:a/b"), "train")
