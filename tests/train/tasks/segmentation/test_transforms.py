import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.images import saved
from tests.support.segmentation import make_folder
from train.data.pipeline import train_batches
from train.tasks.segmentation.config import SegmentationDataConfig
from train.tasks.segmentation.sources import open_source
from train.tasks.segmentation.transforms import Decode, RandomResizedCrop, eval_transforms, train_transforms
from twins_jax.errors import InputError
from twins_jax.segmentation.preprocess import SegmentationPreprocessing, resize

COLORS = np.array([[20, 30, 40], [220, 60, 90], [10, 200, 130], [90, 110, 250]], np.uint8)


def crop(size: int = 64, shorter: int = 64, longer: int = 256, **fields: Any) -> RandomResizedCrop:
    settings = {"scale": (0.5, 2.0), "cat_max_ratio": 1.0, "flip": 0.5, **fields}
    return RandomResizedCrop(SegmentationPreprocessing(shorter, longer), size, **settings)


def rectangles(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    label = np.zeros((height, width), np.uint8)
    for number in range(8):
        top, left = rng.integers(height), rng.integers(width)
        label[top : top + height // 2, left : left + width // 3] = number % 4
    return label


def example(height: int, width: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Noise, under large rectangles of classes with some ignored pixels."""
    rng = np.random.default_rng(seed)
    label = rectangles(height, width, rng)
    label[rng.random(label.shape) < 0.05] = 255
    return {"image": rng.integers(0, 256, (height, width, 3), np.uint8), "label": label}


def naive(transform: RandomResizedCrop, element: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, Any]:
    """mmseg's steps one by one on whole arrays, in NumPy; returns the number of crops drawn, too."""
    image, label = element["image"], element["label"]
    height, width = label.shape
    factor = rng.uniform(*transform.scale)
    sides = int(transform.preprocessing.longer * factor), int(transform.preprocessing.shorter * factor)
    ratio = min(max(sides) / max(height, width), min(sides) / min(height, width))
    new = int(height * ratio + 0.5), int(width * ratio + 0.5)
    image = resize(image, new)
    rows, columns = (
        np.floor(np.arange(n) * (1 / (n / old))).astype(int) for n, old in zip(new, (height, width), strict=True)
    )
    label = label[rows][:, columns]
    draws = 0

    def draw() -> tuple[slice, slice]:
        nonlocal draws
        draws += 1
        top, left = (int(rng.integers(max(side - transform.size, 0) + 1)) for side in new)
        return slice(top, top + transform.size), slice(left, left + transform.size)

    place = draw()
    if transform.cat_max_ratio < 1 and max(new) > transform.size:
        for _ in range(10):
            names, counts = np.unique(label[place], return_counts=True)
            counts = counts[names != 255]
            if len(counts) > 1 and counts.max() / counts.sum() < transform.cat_max_ratio:
                break
            place = draw()
    image, label = image[place], label[place]
    if rng.random() < transform.flip:
        image, label = image[:, ::-1], label[:, ::-1]
    padded = np.zeros((transform.size, transform.size, 3), np.uint8), np.full((transform.size,) * 2, 255, np.uint8)
    for whole, part in zip(padded, (image, label), strict=True):
        whole[: part.shape[0], : part.shape[1]] = part
    return {"image": padded[0], "label": padded[1], "size": label.shape, "draws": draws}


@pytest.mark.parametrize("cat_max_ratio", [1.0, 0.5])
def test_crops_are_parts_of_whole_images(cat_max_ratio: float) -> None:
    """Window, padding, mirror and redraws, the random numbers included, against the steps on whole arrays."""
    transform = crop(cat_max_ratio=cat_max_ratio)
    draws = []
    for seed, (height, width) in enumerate(((80, 120), (120, 50), (33, 400), (64, 64), (41, 43), (300, 220)) * 3):
        element, rngs = example(height, width, seed), [np.random.default_rng(seed) for _ in range(2)]
        actual, expected = transform.random_map(element, rngs[0]), naive(transform, element, rngs[1])
        assert rngs[0].bit_generator.state == rngs[1].bit_generator.state
        assert tuple(actual["size"]) == expected["size"]
        np.testing.assert_array_equal(actual["image"], expected["image"])
        np.testing.assert_array_equal(actual["label"], expected["label"])
        assert {name: (value.shape, value.dtype) for name, value in actual.items()} == {
            "image": ((64, 64, 3), np.uint8), "label": ((64, 64), np.uint8), "size": ((2,), np.int32)
        }  # fmt: skip
        draws.append(expected["draws"])
    assert (max(draws) > 1) == (cat_max_ratio < 1)


def test_a_class_that_fills_most_of_the_image() -> None:
    label = np.zeros((64, 320), np.uint8)
    label[:, 288:] = 1  # 10 %, and 255 on as many pixels: those do not count
    label[:, :32] = 255
    element = {"image": np.zeros((64, 320, 3), np.uint8), "label": label}
    found = {}
    for ratio in (1.0, 0.75):
        transform = crop(shorter=64, longer=320, scale=(1.0, 1.0), cat_max_ratio=ratio, flip=0.0)
        rng = np.random.default_rng(0)
        crops = [transform.random_map(element, rng)["label"] for _ in range(100)]
        found[ratio] = np.mean([0.25 < (c == 1).mean() <= 0.5 for c in crops])
    # 16 of the 257 places hold enough of both; one of eleven draws is among them with 1 - (1 - 16 / 257)**11 = 0.51.
    assert found[1.0] < 0.15
    assert 0.36 < found[0.75] < 0.66  # three standard deviations


def test_a_single_class_is_drawn_eleven_times_and_kept() -> None:
    transform = crop(cat_max_ratio=0.75, scale=(2.0, 2.0))
    element = {"image": np.zeros((64, 70, 3), np.uint8), "label": np.full((64, 70), 3, np.uint8)}
    assert naive(transform, element, np.random.default_rng(0))["draws"] == 11
    np.testing.assert_array_equal(transform.random_map(element, np.random.default_rng(0))["label"], 3)


def test_image_and_labels_stay_together() -> None:
    """An image painted by its labels, after any crop, shows their colors wherever no edge is near."""
    transform = crop(cat_max_ratio=0.75)
    agree = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        label = rectangles(150, 200, rng)
        result = transform.random_map({"image": COLORS[label], "label": label}, rng)
        height, width = result["size"]
        image, label = result["image"][:height, :width], result["label"][:height, :width]
        around = np.lib.stride_tricks.sliding_window_view(label, (3, 3))
        inside = (around == label[1:-1, 1:-1, None, None]).all(axis=(2, 3))
        agree.append((image[1:-1, 1:-1] == COLORS[label[1:-1, 1:-1]]).all(-1)[inside])
        assert (result["image"][height:] == 0).all()
        assert (result["image"][:, width:] == 0).all()
        assert (result["label"][height:] == 255).all()
        assert (result["label"][:, width:] == 255).all()
    assert sum(map(len, agree)) > 10_000
    assert np.concatenate(agree).mean() > 0.995  # thin shapes vanish when shrunk


def uniform(values: list[float], low: float, high: float) -> bool:
    """Kolmogorov's test at the level of 0.1 %, for a seed that is fixed."""
    ranks = (np.sort(values) - low) / (high - low)
    steps = np.arange(len(ranks) + 1) / len(ranks)
    return max(abs(ranks - steps[:-1]).max(), abs(ranks - steps[1:]).max()) < 1.95 / np.sqrt(len(ranks))


def test_distributions_of_the_draws() -> None:
    rng = np.random.default_rng(0)
    plain = {"image": np.zeros((100, 100, 3), np.uint8), "label": np.zeros((100, 100), np.uint8)}
    sides = [float(crop(size=512, shorter=200).random_map(plain, rng)["size"][0]) for _ in range(400)]
    assert uniform(sides, 100, 400)

    y, x = np.mgrid[:100, :100].astype(np.uint8)
    places = {"image": np.stack([y, x, x], -1), "label": np.zeros((100, 100), np.uint8)}
    still = crop(size=40, shorter=100, scale=(1.0, 1.0))
    crops = [still.random_map(places, rng)["image"] for _ in range(1000)]
    mirrored = [image[0, 0, 1] > image[0, 1, 1] for image in crops]
    assert abs(np.mean(mirrored) - 0.5) < 4 * 0.5 / np.sqrt(1000)
    for channel in (0, 1):  # 61 places an axis, both ends among them
        offsets = [int(image[..., channel].min()) for image in crops]
        assert (min(offsets), max(offsets)) == (0, 60)
        assert uniform([offset + rng.random() for offset in offsets], 0, 61)


def test_evaluation_resizes_the_image_alone() -> None:
    element = example(70, 90)
    record = {
        "image": saved(Image.fromarray(element["image"]), "PNG"),
        "mask": saved(Image.fromarray(element["label"]), "PNG"),
        "name": "a.png",
        "mask_name": "b.png",
    }
    config = SegmentationDataConfig(dir="d", shorter=48, longer=60, eval_scales=(1.0, 0.5, 1.75))
    for transform in eval_transforms(config, 4):
        record = transform.map(record)  # type: ignore[union-attr, arg-type]
    assert record.keys() == {"image", "image_1", "image_2", "label"}
    np.testing.assert_array_equal(record["label"], element["label"])
    for name, size in (("image", (47, 60)), ("image_1", (23, 30)), ("image_2", (82, 105))):
        np.testing.assert_array_equal(record[name], resize(element["image"], size))


def test_a_mask_that_does_not_fit_is_one_line() -> None:
    def decode(width: int, label: int) -> None:
        mask = saved(Image.fromarray(np.full((7, width), label, np.uint8)), "PNG")
        image = saved(Image.new("RGB", (9, 7)), "PNG")
        Decode(3, reduce_zero_label=False).map({"image": image, "mask": mask, "name": "a.jpg", "mask_name": "b.png"})

    decode(9, 2)
    decode(9, 255)
    for width, label, message in (
        (7, 0, r"^b\.png: mask of 7 x 7 pixels; must be of 9 x 7, as its image a\.jpg$"),
        (9, 3, r"^b\.png: mask with class index 3; must be 0 to 2, or 255 where ignored$"),
    ):
        with pytest.raises(InputError, match=message):
            decode(width, label)
    with pytest.raises(InputError, match=r"^a\.jpg: not a readable image: "):
        Decode(3, reduce_zero_label=False).map({"image": b"", "mask": b"", "name": "a.jpg", "mask_name": "b.png"})


def test_batches_follow_from_the_seed_and_skip_what_cannot_be_read(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    config = SegmentationDataConfig(dir=str(root), crop_size=32, shorter=32, threads=2, on_error="skip", max_errors=0.5)
    mask = root / "masks" / "train" / "2.png"
    Image.open(mask).convert("RGB").save(mask)
    source = open_source(config, "train")

    def read(seed: int, **options: int) -> list[dict[str, np.ndarray]]:
        iterator = iter(train_batches(source, train_transforms(config, 3), config, 6, seed=seed, **options))
        batches = [{name: np.array(value) for name, value in next(iterator).items()} for _ in range(2)]
        assert iterator.skipped == 2
        return batches

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first, again, other = read(0), read(0), read(1)
    assert any(str(warning.message).startswith(f"{mask}: not a mask: RGB samples of 8 bits") for warning in caught)
    assert first[0].keys() == {"image", "label", "size"}
    for batch, same in zip(first, again, strict=True):
        for name, values in batch.items():
            np.testing.assert_array_equal(values, same[name])
    assert (first[0]["image"] != other[0]["image"]).any()
