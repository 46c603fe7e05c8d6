import json
import multiprocessing
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest

from tests.support.classification import eval_batches, train_batches
from train.tasks.classification.config import ClassificationDataConfig
from twins_jax.errors import InputError

BATCH = 8


@pytest.fixture
def config(image_folder: Path) -> ClassificationDataConfig:
    return ClassificationDataConfig(source="folder", dir=str(image_folder), image_size=32, threads=2)


def with_workers(config: ClassificationDataConfig, workers: int = 2) -> ClassificationDataConfig:
    return ClassificationDataConfig(**{**vars(config), "threads": 1, "workers": workers})


def take(iterator: Iterator[Any], count: int) -> list[dict[str, np.ndarray]]:
    return [{key: np.array(value) for key, value in next(iterator).items()} for _ in range(count)]


def numbers(batches: list[dict[str, np.ndarray]]) -> list[int]:
    """The images' own numbers, which crops and flips leave alone (see the fixture)."""
    return np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches]).tolist()


def assert_equal(actual: list[dict[str, np.ndarray]], expected: list[dict[str, np.ndarray]]) -> None:
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_train_batch(config: ClassificationDataConfig) -> None:
    dataset = train_batches(config, BATCH, seed=0)
    assert isinstance(dataset, grain.IterDataset)
    (batch,) = take(iter(dataset), 1)
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        "image": ((BATCH, 32, 32, 3), np.uint8),
        "label": ((BATCH,), np.int32),
    }
    np.testing.assert_array_equal(batch["label"], batch["image"][:, 0, 0, 0].astype(int) * 3 // 20)


def test_epochs_cover_all_examples_in_orders_of_their_own(config: ClassificationDataConfig) -> None:
    batches = take(iter(train_batches(config, BATCH, seed=0)), 5)
    seen = numbers(batches)
    first, second = seen[:20], seen[20:]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first != sorted(first)
    images = np.concatenate([batch["image"] for batch in batches])
    assert not any(np.array_equal(images[first.index(i)], images[20 + second.index(i)]) for i in range(20))


def test_seed_decides(config: ClassificationDataConfig) -> None:
    batches = take(iter(train_batches(config, BATCH, seed=3)), 5)
    assert_equal(take(iter(train_batches(config, BATCH, seed=3)), 5), batches)
    assert numbers(take(iter(train_batches(config, BATCH, seed=4)), 5)) != numbers(batches)


@pytest.mark.parametrize(("workers", "then"), [(0, 0), (2, 0), (2, 3)])
def test_restored_iterator_goes_on(config: ClassificationDataConfig, workers: int, then: int) -> None:
    """With any number of workers: the state is the same for all of them."""
    uninterrupted = take(iter(train_batches(config, BATCH, seed=5)), 8)
    iterator = iter(train_batches(with_workers(config, workers), BATCH, seed=5))
    assert_equal(take(iterator, 3), uninterrupted[:3])
    assert len(multiprocessing.active_children()) == workers
    state = json.loads(json.dumps(iterator.get_state()))
    assert state == {"next_index": 3, "read": 0, "skipped": 0}
    assert_equal(take(iterator, 2), uninterrupted[3:5])
    iterator.close()
    assert not multiprocessing.active_children()

    restored = iter(train_batches(with_workers(config, then), BATCH, seed=5))
    restored.set_state(state)
    assert restored.get_state() == state
    assert_equal(take(restored, 5), uninterrupted[3:])
    restored.close()


@pytest.mark.parametrize(("read", "expected"), [([2, 1, 1], 4), ([0, 0], 0), ([7], 7)])
def test_state_of_an_earlier_version_with_workers(
    config: ClassificationDataConfig, read: list[int], expected: int
) -> None:
    """It is Grain's own, with a state for each worker."""
    states = [{"next_index": number} for number in read]
    iterator = iter(train_batches(config, BATCH, seed=5))
    iterator.set_state({"next_index_in_cycle": expected % len(read), "iterators_in_use_states": states})
    assert iterator.get_state()["next_index"] == expected


@pytest.mark.parametrize("state", [{}, {"next_index": "7"}, {"next_index": -1}, {"iterators_in_use_states": [None]}])
def test_a_state_that_is_none(config: ClassificationDataConfig, state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no position in the data"):
        iter(train_batches(config, BATCH, seed=5)).set_state(state)


def augmented(config: ClassificationDataConfig) -> ClassificationDataConfig:
    return ClassificationDataConfig(**{**vars(config), "rand_augment_layers": 2, "repeated_augmentation": 3})


def test_augmentations_are_restored(config: ClassificationDataConfig) -> None:
    dataset = train_batches(augmented(config), BATCH, seed=5)
    uninterrupted = take(iter(dataset), 8)
    iterator = iter(dataset)
    take(iterator, 3)
    restored = iter(train_batches(augmented(config), BATCH, seed=5))
    restored.set_state(json.loads(json.dumps(iterator.get_state())))
    assert_equal(take(restored, 5), uninterrupted[3:])


def test_rand_augment_acts(config: ClassificationDataConfig) -> None:
    plain = take(iter(train_batches(config, BATCH, seed=0)), 5)
    config = ClassificationDataConfig(**{**vars(config), "rand_augment_layers": 2})
    others = take(iter(train_batches(config, BATCH, seed=0)), 5)
    pairs = zip(*(np.concatenate([batch["image"] for batch in batches]) for batches in (plain, others)), strict=True)
    assert 2 <= sum(np.array_equal(a, b) for a, b in pairs) <= 20  # of 40 images a quarter has no operation


def test_repeated_augmentation(config: ClassificationDataConfig) -> None:
    config = ClassificationDataConfig(**{**vars(config), "repeated_augmentation": 3})
    batches = take(iter(train_batches(config, 12, seed=0)), 10)  # two epochs
    seen = numbers(batches)
    assert seen[0::3] == seen[1::3] == seen[2::3]
    first, second = seen[:60:3], seen[60::3]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    images = np.concatenate([batch["image"] for batch in batches])
    assert not any(np.array_equal(images[i], images[i + 1]) for i in range(119))


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("shards", [2, 3])
def test_train_shards_deal_out_the_stream(config: ClassificationDataConfig, shards: int, repeats: int) -> None:
    config = ClassificationDataConfig(**{**vars(config), "repeated_augmentation": repeats})
    whole = take(iter(train_batches(config, 4 * shards, seed=1)), 6)
    parts = [take(iter(train_batches(config, 4, seed=1, shard=shard, shards=shards)), 6) for shard in range(shards)]
    for shard, batches in enumerate(parts):
        assert_equal(batches, [{key: value[shard::shards] for key, value in batch.items()} for batch in whole])


@pytest.mark.parametrize("shards", [2, 3, 12])
def test_eval_shards_cover_each_example_once(config: ClassificationDataConfig, shards: int) -> None:
    """And all shards have as many batches, of the same shapes: with 12 shards one has padding alone."""
    seen = []
    for shard in range(shards):
        batches = list(eval_batches(config, 4, shard=shard, shards=shards))
        assert [batch["image"].shape for batch in batches] == [(4, 32, 32, 3)] * -(-11 // (4 * shards))
        seen += [
            number for batch in batches for number, real in zip(numbers([batch]), batch["mask"], strict=True) if real
        ]
    assert sorted(seen) == list(range(11))


@pytest.mark.parametrize("workers", [False, True])
def test_eval_covers_each_example_once_in_order(config: ClassificationDataConfig, workers: bool) -> None:
    dataset = eval_batches(with_workers(config) if workers else config, 4)
    for _ in range(1 if workers else 2):  # a second pass starts over
        batches = list(dataset)
        assert len(batches) == 3
        mask = np.concatenate([batch["mask"] for batch in batches])
        assert mask.dtype == bool
        assert mask.tolist() == [True] * 11 + [False]
        assert numbers(batches) == [*range(11), 0]
        labels = np.concatenate([batch["label"] for batch in batches])
        assert labels.dtype == np.int32
        assert labels.tolist() == [i * 3 // 11 for i in range(11)] + [0]
        for batch in batches:
            assert (batch["image"].shape, batch["image"].dtype) == ((4, 32, 32, 3), np.uint8)


def test_eval_without_padding(config: ClassificationDataConfig) -> None:
    (batch,) = eval_batches(config, 11)
    assert batch["mask"].all()
    assert batch["image"].shape == (11, 32, 32, 3)


def test_digits_with_workers() -> None:
    config = ClassificationDataConfig(image_size=32, eval_crop=1.0, threads=2)
    assert_equal(list(eval_batches(with_workers(config), 100)), list(eval_batches(config, 100)))


@pytest.mark.parametrize(("train", "workers"), [(True, False), (False, False), (False, True)])
def test_unreadable_image_is_named(
    config: ClassificationDataConfig, tmp_path: Path, train: bool, workers: bool
) -> None:
    shutil.copytree(config.dir, tmp_path, dirs_exist_ok=True)
    bad = tmp_path / ("train" if train else "val") / "class1" / ("10.png" if train else "05.png")
    bad.write_bytes(bad.read_bytes()[:100])
    config = ClassificationDataConfig(**{**vars(config), "dir": str(tmp_path)})
    config = with_workers(config) if workers else config
    iterator = iter(train_batches(config, BATCH, seed=0) if train else eval_batches(config, 4))
    with pytest.raises(InputError, match=re.escape(f"{bad}: not a readable image")):
        take(iterator, 3)
    iterator.close()
