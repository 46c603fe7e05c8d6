import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.detection import SIZES, make_folder, make_image
from tests.support.images import saved
from train.data.pipeline import eval_batches, train_batches
from train.tasks.detection.config import DetectionDataConfig
from train.tasks.detection.shapes import fitted_size, plan_batches, training_shape
from train.tasks.detection.sources import open_source
from train.tasks.detection.transforms import (
    CROP_RANGE,
    CROPPED_SCALES,
    SCALES,
    Decode,
    RandomCropResizeFlip,
    RandomFlipResize,
    RandomViews,
    eval_transforms,
    train_transforms,
)
from twins_jax.detection.preprocess import DetectionPreprocessing
from twins_jax.errors import InputError
from twins_jax.segmentation.preprocess import resize

pytestmark = pytest.mark.filterwarnings("ignore:.*annotations that training leaves out")


def views(kind: type[RandomViews], shape: tuple[int, int] = (64, 96), **fields: Any) -> RandomViews:
    settings = {"preprocessing": DetectionPreprocessing(64, 96), "max_boxes": 5, "flip": 0.5, **fields}
    return kind(shape=shape, **settings)


def example(size: tuple[int, int], seed: int = 0) -> dict[str, Any]:
    """Noise, with bitmaps of noise, and boxes anywhere; of every third seed they are in one corner."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-3, 1.0, (4, 2)) + rng.uniform(0, 0.9 if seed % 3 else 0.1, (4, 2)) * size[::-1]
    return {
        "image": rng.integers(0, 256, (*size, 3), np.uint8),
        "boxes": np.concatenate([corners, corners + rng.uniform(1, 40 if seed % 3 else 4, (4, 2))], axis=1).astype(
            np.float32
        ),
        "labels": rng.integers(0, 9, 4, np.int32),
        "bitmaps": list(rng.integers(0, 2, (4, *size), np.uint8)),
        "row": seed,
    }


class Naive:
    """mmdet's steps one by one on whole arrays, in NumPy."""

    def __init__(self, element: dict[str, Any]) -> None:
        self.image, self.boxes, self.labels = element["image"], element["boxes"], element["labels"]
        self.masks = np.stack(element["bitmaps"])

    def resize(self, size: tuple[int, int]) -> None:
        old = self.image.shape[:2]
        self.image = resize(self.image, size)
        rows, columns = (np.floor(np.arange(n) * (1 / (n / o))).astype(int) for n, o in zip(size, old, strict=True))
        self.masks = self.masks[:, rows][:, :, columns]
        factors = np.array([size[1] / old[1], size[0] / old[0]] * 2, np.float32)
        self.boxes = self._clipped(self.boxes * factors)

    def flip(self) -> None:
        self.image, self.masks = self.image[:, ::-1], self.masks[:, :, ::-1]
        flipped = self.boxes.copy()
        flipped[:, 0] = self.image.shape[1] - self.boxes[:, 2]
        flipped[:, 2] = self.image.shape[1] - self.boxes[:, 0]
        self.boxes = flipped

    def crop(self, top: int, left: int, height: int, width: int) -> None:
        self.image = self.image[top : top + height, left : left + width]
        self.masks = self.masks[:, top : top + height, left : left + width]
        boxes = self._clipped(self.boxes - np.array([left, top, left, top], np.float32))
        kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        self.boxes, self.labels, self.masks = boxes[kept], self.labels[kept], self.masks[kept]

    def _clipped(self, boxes: np.ndarray) -> np.ndarray:
        height, width = self.image.shape[:2]
        boxes = boxes.copy()
        boxes[:, 0::2] = np.clip(boxes[:, 0::2], 0, width)
        boxes[:, 1::2] = np.clip(boxes[:, 1::2], 0, height)
        return boxes


def check(actual: dict[str, Any], expected: Naive, shape: tuple[int, int], places: int) -> None:
    height, width = expected.image.shape[:2]
    count = min(len(expected.labels), places)
    assert {name: (value.shape, value.dtype) for name, value in actual.items()} == {
        "image": ((*shape, 3), np.uint8), "size": ((2,), np.int32), "boxes": ((places, 4), np.float32),
        "labels": ((places,), np.int32), "valid": ((places,), np.bool_),
        "masks": ((places, shape[0], shape[1] // 8), np.uint8),
    }  # fmt: skip
    assert tuple(actual["size"]) == (height, width)
    assert actual["valid"].tolist() == [True] * count + [False] * (places - count)
    image = np.zeros((*shape, 3), np.uint8)
    image[:height, :width] = expected.image
    np.testing.assert_array_equal(actual["image"], image)
    for name, values in (("boxes", expected.boxes), ("labels", expected.labels)):
        np.testing.assert_array_equal(actual[name][:count], values[:count])
        assert not actual[name][count:].any()
    masks = np.zeros((places, *shape), np.uint8)
    masks[:count, :height, :width] = expected.masks[:count]
    np.testing.assert_array_equal(np.unpackbits(actual["masks"], axis=2), masks)


def scaled(size: tuple[int, int], shorter: float, longer: float) -> tuple[int, int]:
    factor = min(longer / max(size), shorter / min(size))
    return int(size[0] * factor + 0.5), int(size[1] * factor + 0.5)


@pytest.mark.parametrize("places", [5, 2])
def test_resized_and_mirrored_as_in_mmdet(places: int) -> None:
    mirrored = []
    for seed, size in enumerate(((60, 80), (33, 90), (128, 150), (64, 96), (70, 71), (200, 300)) * 3):
        transform = views(RandomFlipResize, max_boxes=places)
        actual = transform.random_map(element := example(size, seed), np.random.default_rng(seed))
        expected = Naive(element)
        expected.resize(scaled(size, 64, 96))
        mirrored.append(np.random.default_rng(seed).random() < 0.5)
        if mirrored[-1]:
            expected.flip()
        check(actual, expected, (64, 96), places)
    assert 0 < sum(mirrored) < len(mirrored)


def test_crops_as_in_mmdet() -> None:
    """The published 3x schedules, with the random numbers, and images that lose some or all of their boxes."""
    crops, lost = 0, []
    for seed, size in enumerate(((60, 80), (48, 99), (128, 150), (65, 64), (200, 300)) * 8):
        transform = views(RandomCropResizeFlip, (96, 96))
        actual = transform.random_map(element := example(size, seed), np.random.default_rng(seed))
        expected, rng = Naive(element), np.random.default_rng(seed)
        if rng.random() < 0.5:
            expected.flip()
        if rng.random() < 0.5:
            crops += 1
            shorter = round(64 * (0.5, 0.625, 0.75)[rng.integers(3)])
            expected.resize(resized := scaled(size, max(shorter, 32), 96))
            # Of shorter = 64 the range of crops is 31 to 48.
            height, width = (int(rng.integers(min(side, 31), min(side, 48) + 1)) for side in resized)
            expected.crop(
                int(rng.integers(resized[0] - height + 1)), int(rng.integers(resized[1] - width + 1)), height, width
            )
        shorter = max(32, round(64 * (0.6 + 0.04 * rng.integers(11))))
        expected.resize(scaled(expected.image.shape[:2], shorter, 96))
        check(actual, expected, (96, 96), 5)
        lost.append(4 - len(expected.labels))
    assert 10 < crops < 30
    assert {0, 1, 4} <= {*lost}


def test_published_sizes_of_crops() -> None:
    assert [round(800 * scale) for scale in SCALES] == [*range(480, 801, 32)]
    assert [round(800 * scale) for scale in CROPPED_SCALES] == [400, 500, 600]
    assert [round(800 * share) for share in CROP_RANGE] == [384, 600]


def test_distributions_of_the_draws() -> None:
    transform = views(RandomCropResizeFlip, (1344, 1344), preprocessing=DetectionPreprocessing())
    rng = np.random.default_rng(0)
    drawn = [transform.views((480, 640), rng) for _ in range(3000)]
    cropped = [found for found in drawn if len(found) == 3]
    for share in (np.mean([found[0].mirror for found in drawn]), len(cropped) / 3000):
        assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(3000)
    counts = np.unique([min(found[-1].size) for found in drawn if len(found) == 2], return_counts=True)[1]
    assert len(counts) == 11
    assert np.square(counts - counts.mean()).sum() / counts.mean() < 29.6  # chi-squared of 10 degrees at 0.1 %
    sizes = np.array([found[1].size for found in cropped])
    resized = np.array([found[1].full_size for found in cropped])
    assert {*resized[:, 0].tolist()} == {400, 500, 600}
    assert (sizes.min(axis=0) == 384).all()
    assert sizes.max(axis=0).tolist() == [600, 600]
    assert abs(np.corrcoef(sizes[resized[:, 0] == 600].T)[0, 1]) < 4 / np.sqrt((resized[:, 0] == 600).sum())
    offsets = np.array([found[1].window for found in cropped])
    assert (offsets >= 0).all()
    assert (offsets + sizes <= resized).all()


def test_image_boxes_and_masks_stay_together() -> None:
    """Objects are found by their color where boxes and masks say, after any views."""
    found = []
    for seed in range(30):
        image, objects = make_image(seed, (120, 160))
        bitmaps = [bitmap for _, bitmap in objects]
        boxes = [[b.any(0).argmax(), b.any(1).argmax(), 160 - b.any(0)[::-1].argmax(), 120 - b.any(1)[::-1].argmax()]
                 for b in bitmaps]  # fmt: skip
        element = {"image": image, "boxes": np.array(boxes, np.float32), "bitmaps": bitmaps,
                   "labels": np.array([label for label, _ in objects], np.int32)}  # fmt: skip
        kind = (RandomFlipResize, RandomCropResizeFlip)[seed % 2]
        result = views(kind, (96, 128), preprocessing=DetectionPreprocessing(96, 128)).random_map(
            element, np.random.default_rng(seed)
        )
        masks = np.unpackbits(result["masks"], axis=2).astype(bool)
        is_object = result["image"].astype(int).max(axis=2) > 140
        for mask, box, label in zip(masks, result["boxes"], result["labels"], strict=True):
            if not mask.any():
                continue
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            drawn = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            beyond = (drawn - box) * [-1, -1, 1, 1]
            assert beyond.max() < 3  # a pixel of a crop is two of the example
            assert label == 1 or beyond.min() > -3  # discs are cut
            inside = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1), (3, 3)).all(axis=(2, 3))
            colors = result["image"][inside].astype(int)
            found += [*is_object[inside], *((colors[:, 0] > colors[:, 2]) == (label == 0))]
    assert len(found) > 10_000
    assert np.mean(found) > 0.99


@pytest.mark.parametrize(
    ("sizes", "multi_scale", "shape"),
    [
        ([(480, 640)] * 3 + [(640, 480)] * 2, False, (800, 1088)),  # 800 x 1067
        ([(480, 640)] * 2 + [(640, 480)] * 3, False, (1088, 800)),
        ([(480, 640), (640, 480), (300, 640)], False, (800, 1344)),  # 625 x 1333
        ([(480, 640), (640, 480)], False, (800, 1088)),
        ([(500, 500), (640, 480)], False, (1088, 800)),
        ([(500, 500)], False, (800, 800)),
        ([(480, 640)], True, (800, 1344)),
        ([(640, 480)], True, (1344, 800)),
    ],
)
def test_the_shape_of_training(sizes: list[tuple[int, int]], multi_scale: bool, shape: tuple[int, int]) -> None:
    data = DetectionDataConfig(dir="d", multi_scale=multi_scale)
    assert training_shape(np.array(sizes), data) == shape


def test_images_of_the_other_orientation_are_shrunk_to_fit() -> None:
    preprocessing = DetectionPreprocessing()
    assert fitted_size((480, 640), preprocessing, (800, 1344)) == (800, 1067)
    assert fitted_size((640, 480), preprocessing, (800, 1344)) == (800, 600)
    assert fitted_size((640, 480), preprocessing, (1344, 1344)) == (1067, 800)
    assert fitted_size((4000, 3), preprocessing, (800, 1344)) == (800, 1)
    for height, width in np.random.default_rng(0).integers(1, 3000, (500, 2)).tolist():
        found = fitted_size((height, width), preprocessing, (800, 1344))
        assert found[0] <= 800
        assert found[1] <= 1344
        full = preprocessing.size(height, width)
        assert found == full or (full[0] > 800 and found[0] == 800 and abs(found[1] - 800 * width / height) <= 1)


def test_evaluation_resizes_the_image_alone(tmp_path: Path) -> None:
    data = DetectionDataConfig(dir=str(make_folder(tmp_path)), shorter=64, longer=96)
    source = open_source(data, "eval", masks=False)
    for index, size in enumerate(SIZES):
        record: Any = source[index]
        for transform in eval_transforms(data):
            record = transform.map(record)  # type: ignore[union-attr]
        expected = scaled(size, 64, 96)
        assert record.keys() == {"image", "size", "scale", "original", "id"}
        np.testing.assert_array_equal(record["image"], resize(make_image(100 + index, size)[0], expected))
        assert (tuple(record["size"]), tuple(record["original"]), int(record["id"])) == (expected, size, index)
        assert record["scale"].dtype == np.float32
        assert record["scale"].tolist() == [np.float32(new / old) for new, old in zip(expected, size, strict=True)]


@pytest.mark.parametrize("shards", [1, 2])
def test_batches_of_evaluation(tmp_path: Path, shards: int) -> None:
    """Each image once, in batches of one padded shape, which all shards share."""
    data = DetectionDataConfig(dir=str(make_folder(tmp_path)), shorter=64, longer=96, threads=2)
    source = open_source(data, "eval", masks=False)
    plan = plan_batches(source.sizes, data, 2)
    seen = []
    shapes: list[list[tuple[int, ...]]] = [[] for _ in range(shards)]
    for shard in range(shards):
        batches = eval_batches(source, eval_transforms(data), data, 2 // shards, plan=plan, shard=shard, shards=shards)
        for batch in batches:
            shapes[shard].append(batch["image"].shape)
            for row in np.flatnonzero(batch["mask"]):
                height, width = batch["size"][row]
                assert batch["image"].shape[1:3] == DetectionPreprocessing(64, 96).padded_shape(height, width)
                assert batch["image"][row, :height, :width].any(axis=2).all()
                assert not batch["image"][row, height:].any()
                seen.append(int(batch["id"][row]))
    assert sorted(seen) == [*range(len(SIZES))]
    assert shapes[0] == shapes[-1]
    assert len({*shapes[0]}) == 2


def test_an_image_of_another_size_is_one_line() -> None:
    def decode(size: tuple[int, int]) -> None:
        image = saved(Image.new("RGB", (9, 7)), "PNG")
        record = {"image": image, "name": "a.jpg", "row": 0, "size": size, "boxes": np.zeros((0, 4), np.float32),
                  "labels": np.zeros(0, np.int32), "segmentations": []}  # fmt: skip
        Decode(masks=False).map(record)  # type: ignore[arg-type]

    decode((7, 9))
    with pytest.raises(InputError, match=r"^a\.jpg: image of 9 x 7 pixels; must be of 9 x 8, as its annotations say$"):
        decode((8, 9))


def test_photographs_are_upright() -> None:
    """EXIF orientation 3: by half a turn, with the size that the annotations say."""
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    record = {"image": saved(Image.fromarray(pixels), "JPEG", exif=exif), "name": "a.jpg", "row": 0, "size": (16, 24),
              "boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int32), "segmentations": []}  # fmt: skip
    image = Decode(masks=False).map(record)["image"]  # type: ignore[arg-type]
    assert image[:8].max() < 64 < 192 < image[8:].min()


def test_batches_follow_from_the_seed_and_skip_what_cannot_be_read(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    data = DetectionDataConfig(
        dir=str(root), shorter=64, longer=96, threads=2, on_error="skip", max_errors=0.5, multi_scale=True
    )
    path = root / "images" / "train" / "2.png"
    path.write_bytes(path.read_bytes()[:60])
    source = open_source(data, "train", masks=True)
    shape = training_shape(source.sizes, data)
    transforms = train_transforms(data, shape, source.boxes_an_image, masks=True)

    def read(seed: int, skip: int = 0, **options: int) -> list[dict[str, np.ndarray]]:
        iterator = iter(train_batches(source, transforms, data, 2, seed=seed, **options))
        if skip:
            next(iterator)
            state, iterator = iterator.get_state(), iter(train_batches(source, transforms, data, 2, seed=seed))
            iterator.set_state(state)
        return [{name: np.array(value) for name, value in next(iterator).items()} for _ in range(3)]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first, again, other, later = read(0), read(0), read(1), read(0, skip=1)
        shards = [read(0, shard=shard, shards=2) for shard in range(2)]
    assert any(str(warning.message).startswith(f"{path}: not a readable image: ") for warning in caught)
    assert {name: value.shape for name, value in first[0].items()} == {
        "image": (2, 64, 96, 3), "size": (2, 2), "boxes": (2, 4, 4), "labels": (2, 4), "valid": (2, 4),
        "masks": (2, 4, 64, 12),
    }  # fmt: skip
    for name in first[0]:
        np.testing.assert_array_equal([batch[name] for batch in first], [batch[name] for batch in again])
        np.testing.assert_array_equal(first[1][name], later[0][name])
        # Every second example goes to each of two shards.
        np.testing.assert_array_equal(first[0][name][1], shards[1][0][name][0])
        np.testing.assert_array_equal(first[1][name][0], shards[0][0][name][1])
    assert (first[0]["image"] != other[0]["image"]).any()


def test_pickled_transforms() -> None:
    """Worker processes get copies."""
    import pickle

    data = DetectionDataConfig(dir="d")
    for found in (train_transforms(data, (800, 1344), 9, masks=True), eval_transforms(data)):
        for transform in found:
            copy = pickle.loads(pickle.dumps(transform))
            if dataclasses.is_dataclass(transform):
                assert copy == transform
