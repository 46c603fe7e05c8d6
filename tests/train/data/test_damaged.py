"""`data.on_error`: records that cannot be read."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.classification import eval_batches, train_batches
from train.data.damaged import MAX_IN_A_ROW, ReadableSource
from train.data.records import Record
from train.tasks.classification.config import ClassificationDataConfig
from twins_jax.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:.*skipped")

TRAIN, EVAL = (4, 5, 19), (0, 7)
"""Numbers of the damaged images: neighbors, the last one and the first one are among them."""


@pytest.fixture
def config(image_folder: Path, tmp_path: Path) -> ClassificationDataConfig:
    shutil.copytree(image_folder, tmp_path, dirs_exist_ok=True)
    for split, damaged in (("train", TRAIN), ("val", EVAL)):
        for path in (tmp_path / split).glob("*/*"):
            if int(path.stem) in damaged:
                path.write_bytes(path.read_bytes()[:60])
    options: dict[str, Any] = {"on_error": "skip", "max_errors": 0.2, "threads": 2}
    return ClassificationDataConfig(source="folder", dir=str(tmp_path), image_size=32, **options)


def changed(config: ClassificationDataConfig, **fields: Any) -> ClassificationDataConfig:
    return ClassificationDataConfig(**{**vars(config), **fields})


def take(iterator: Iterator[Any], count: int) -> list[dict[str, np.ndarray]]:
    return [{key: np.array(value) for key, value in next(iterator).items()} for _ in range(count)]


def numbers(batches: list[dict[str, np.ndarray]]) -> list[int]:
    return np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches]).tolist()


def test_training_takes_the_next_one(config: ClassificationDataConfig, image_folder: Path) -> None:
    whole = take(iter(train_batches(changed(config, dir=str(image_folder)), 4)), 10)
    batches = take(iter(train_batches(config, 4)), 10)
    instead = {**{number: number for number in range(20)}, 4: 6, 5: 6, 19: 0}
    assert numbers(batches) == [instead[number] for number in numbers(whole)]
    for batch, other in zip(batches, whole, strict=True):
        assert batch.keys() == {"image", "label"}
        np.testing.assert_array_equal(batch["label"], [number * 3 // 20 for number in numbers([batch])])
        same = [number not in TRAIN for number in numbers([other])]
        np.testing.assert_array_equal(batch["image"][same], other["image"][same])


def test_count_and_images_are_restored(config: ClassificationDataConfig) -> None:
    uninterrupted = iter(train_batches(config, 4))
    expected = take(uninterrupted, 10)
    dataset = train_batches(config, 4)
    iterator = iter(dataset)
    take(iterator, 5)
    state = json.loads(json.dumps(iterator.get_state()))
    restored = iter(dataset)
    restored.set_state(state)
    assert restored.skipped == len(TRAIN)
    for batch, other in zip(take(restored, 5), expected[5:], strict=True):
        np.testing.assert_array_equal(batch["image"], other["image"])
    assert restored.skipped == uninterrupted.skipped == 2 * len(TRAIN)


def test_states_of_either_mode_and_of_old_runs_go_on_in_the_other(config: ClassificationDataConfig) -> None:
    skipping = iter(train_batches(config, 4))
    take(skipping, 5)
    state = skipping.get_state()
    stopping = iter(train_batches(changed(config, on_error="stop"), 4))
    stopping.set_state(state)
    assert stopping.get_state() == state
    expected = take(skipping, 1)
    old = {key: value for key, value in state.items() if key not in ("read", "skipped")}
    skipping.set_state(old)
    assert skipping.skipped == 0
    np.testing.assert_array_equal(take(skipping, 1)[0]["image"], expected[0]["image"])


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_masks_them(config: ClassificationDataConfig, workers: int) -> None:
    iterator = iter(eval_batches(changed(config, workers=workers), 4))
    batches = take(iterator, 3)
    assert all(batch.keys() == {"image", "label", "mask"} for batch in batches)
    mask = np.concatenate([batch["mask"] for batch in batches])
    assert np.flatnonzero(mask).tolist() == [number for number in range(11) if number not in EVAL]
    assert iterator.skipped == 2
    iterator.close()


@pytest.mark.parametrize(("split", "share", "enough"), [("train", 0.149, 0.15), ("eval", 0.18, 0.182)])
def test_bound(config: ClassificationDataConfig, split: str, share: float, enough: float) -> None:
    def read(max_errors: float) -> None:
        changed_config = changed(config, max_errors=max_errors)
        if split == "train":
            take(iter(train_batches(changed_config, 4)), 10)
        else:  # the second damaged image is in the last batch, which is padded
            take(iter(eval_batches(changed_config, 7)), 2)

    read(enough)
    with pytest.raises(InputError, match=rf"^data.max_errors={share}: [23] damaged examples in (20|11); must"):
        read(share)


def test_stops_without_skip(config: ClassificationDataConfig) -> None:
    with pytest.raises(InputError, match=r"train/class\d/\d\d\.png: not a readable image: "):
        take(iter(train_batches(changed(config, on_error="stop"), 4)), 5)


@pytest.mark.parametrize(("field", "value"), [("on_error", "ignore"), ("max_errors", -0.1), ("max_errors", 1.5)])
def test_fields(config: ClassificationDataConfig, field: str, value: Any) -> None:
    with pytest.raises(InputError, match=re.escape(f"data.{field}={value!r}: must be ")):
        changed(config, **{field: value})


class Broken:
    """A source whose records below `good` cannot be read."""

    class_names = ("a",)

    def __init__(self, length: int, good: int):
        self._length, self._good = length, good

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        if index < self._good:
            raise InputError(f"record {index}: cannot be read")
        return {"image": b"", "label": 0, "name": str(index)}


def test_damaged_ones_are_named_and_many_in_a_row_are_no_accident() -> None:
    with pytest.warns(UserWarning, match=r"^record 1: cannot be read; skipped \(data\.on_error\)$"):
        assert ReadableSource(Broken(3, good=2), ())[1]["name"] == "2"
    message = rf"data.on_error=skip: {MAX_IN_A_ROW} examples in a row cannot be read, the last: record 99: cannot"
    with pytest.raises(InputError, match=message):
        ReadableSource(Broken(1000, good=500), ())[0]
    with pytest.raises(InputError, match=r"data.on_error=skip: 3 examples in a row cannot be read, the last: record 0"):
        ReadableSource(Broken(3, good=3), ())[1]
