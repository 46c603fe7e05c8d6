from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.paths import SHARED_DATA
from train.data.augment import RandAugment
from train.data.folder import FolderSource
from train.tasks.classification.config import ClassificationDataConfig
from train.tasks.classification.transforms import (
    Decode,
    RandomResizedCrop,
    ResizedCenterCrop,
    ToExample,
    eval_transforms,
    train_transforms,
)
from twins_jax.errors import InputError
from twins_jax.preprocess import Preprocessing

SIZES = [(37, 53), (53, 37), (64, 64), (200, 31), (31, 200), (9, 8), (1, 7), (501, 375)]  # width, height
IMAGENET_SAMPLE = SHARED_DATA / "imagenet-sample"


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


def apply_eval(config: ClassificationDataConfig, record: Any) -> np.ndarray:
    for transform in eval_transforms(config):
        record = transform.map(record)
    return record["image"]


def torchvision_eval(torchvision: ModuleType, resize: int, size: int) -> Callable[[Image.Image], Image.Image]:
    transforms = torchvision.transforms
    bicubic = transforms.InterpolationMode.BICUBIC
    return transforms.Compose([transforms.Resize(resize, bicubic), transforms.CenterCrop(size)])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("image_size", "eval_crop", "resize"), [(32, 0.875, 36), (33, 0.9, 36), (48, 1.0, 48)])
def test_evaluation_equals_torchvision(
    torchvision: ModuleType,
    encode: Callable[..., bytes],
    size: tuple[int, int],
    image_size: int,
    eval_crop: float,
    resize: int,
) -> None:
    image = noise(*size)
    config = ClassificationDataConfig(image_size=image_size, eval_crop=eval_crop)
    actual = apply_eval(config, {"image": encode(np.asarray(image)), "label": 3, "name": ""})
    assert (actual.shape, actual.dtype) == ((image_size, image_size, 3), np.uint8)
    np.testing.assert_array_equal(actual, np.asarray(torchvision_eval(torchvision, resize, image_size)(image)))


@pytest.mark.skipif(not IMAGENET_SAMPLE.exists(), reason="needs shared/data/imagenet-sample beside the project")
def test_evaluation_of_imagenet_equals_torchvision(torchvision: ModuleType, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(IMAGENET_SAMPLE)
    source = FolderSource(tmp_path, train=False)
    assert len(source) == len(source.class_names) == 83
    reference = torchvision_eval(torchvision, 256, 224)
    for index in range(0, 83, 9):
        record = source[index]
        with Image.open(record["name"]) as image:
            expected = np.asarray(reference(image.convert("RGB")))
        np.testing.assert_array_equal(apply_eval(ClassificationDataConfig(), record), expected)


def drawing_from(torch: ModuleType, rng: np.random.Generator) -> SimpleNamespace:
    """The part of torch that RandomResizedCrop uses, in float64 and with the draws of `rng`."""

    def uniform(low: Any, high: Any) -> Any:
        return torch.tensor([rng.uniform(float(low), float(high))], dtype=torch.float64)

    return SimpleNamespace(
        tensor=lambda values: torch.tensor(values, dtype=torch.float64),
        log=torch.log,
        exp=torch.exp,
        empty=lambda _: SimpleNamespace(uniform_=uniform),
        randint=lambda low, high, size: torch.tensor(rng.integers(low, high, size)),
    )


@pytest.mark.parametrize(
    ("scale", "ratio"),
    [
        ((0.08, 1.0), (3 / 4, 4 / 3)),
        ((0.5, 1.0), (0.9, 2.0)),
        ((0.001, 0.02), (0.3, 3.0)),  # less than a pixel of the small images
        ((1.0, 1.0), (0.2, 0.25)),  # too high and
        ((1.0, 1.0), (8.0, 9.0)),  # too wide for most of the images, hence the fallback
    ],
)
@pytest.mark.parametrize("size", SIZES)
def test_random_resized_crop_equals_torchvision(
    torchvision: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> None:
    transforms = torchvision.transforms
    reference = transforms.RandomResizedCrop(32, scale, ratio, transforms.InterpolationMode.BICUBIC)
    ours = RandomResizedCrop(32, scale, ratio, flip=0.0)
    image = noise(*size)
    torch = transforms.transforms.torch
    for seed in range(100):
        monkeypatch.setattr(transforms.transforms, "torch", drawing_from(torch, np.random.default_rng(seed)))
        top, left, height, width = reference.get_params(image, scale, ratio)
        box = ours.sample_box(*size, np.random.default_rng(seed))
        assert box == (left, top, width, max(height, 1))
    monkeypatch.setattr(transforms.transforms, "torch", drawing_from(torch, np.random.default_rng(0)))
    actual = ours.random_map({"image": np.array(image)}, np.random.default_rng(0))["image"]
    assert actual.flags.c_contiguous
    if height == 0:  # at the last seed; torchvision's result is black
        return
    np.testing.assert_array_equal(actual, np.asarray(reference(image)))


def test_flip() -> None:
    image = np.array(noise(5, 4))
    crop = RandomResizedCrop(5, (1.0, 1.0), (1.25, 1.25), flip=0.3)
    straight = np.asarray(noise(5, 4).resize((5, 5), Image.Resampling.BICUBIC))
    rng = np.random.default_rng(0)
    flips = 0
    for _ in range(2000):
        out = crop.random_map({"image": image}, rng)["image"]
        flipped = np.array_equal(out, straight[:, ::-1])
        assert flipped or np.array_equal(out, straight)
        flips += flipped
    assert abs(flips / 2000 - 0.3) < 0.05
    for probability, expected in ((0.0, straight), (1.0, straight[:, ::-1])):
        crop = RandomResizedCrop(5, (1.0, 1.0), (1.25, 1.25), probability)
        assert all(np.array_equal(crop.random_map({"image": image}, rng)["image"], expected) for _ in range(50))


def test_training_list() -> None:
    config = ClassificationDataConfig(image_size=40, crop_scale=(0.2, 0.9), crop_ratio=(0.5, 2.0), flip=0.1)
    decode, crop, to_example = train_transforms(config)
    assert isinstance(decode, Decode)
    assert crop == RandomResizedCrop(40, (0.2, 0.9), (0.5, 2.0), 0.1)
    example = to_example.map({"image": np.array(noise(3, 2)), "label": 7, "name": "x"})
    assert {key: (value.dtype, value.shape) for key, value in example.items()} == {
        "image": (np.uint8, (2, 3, 3)),
        "label": (np.int32, ()),
    }
    assert isinstance(to_example, ToExample)


def test_training_list_with_rand_augment() -> None:
    config = ClassificationDataConfig(rand_augment_layers=3, rand_augment_magnitude=7.5, rand_augment_std=0.1)
    *others, augment, to_example = train_transforms(config)
    assert [type(transform) for transform in others] == [Decode, RandomResizedCrop]
    assert augment == RandAugment(3, 7.5, 0.1)
    assert isinstance(to_example, ToExample)


def test_evaluation_list() -> None:
    decode, crop, to_example = eval_transforms(ClassificationDataConfig(rand_augment_layers=2))
    assert isinstance(decode, Decode)
    assert crop == ResizedCenterCrop(Preprocessing(224, 0.875))
    assert isinstance(to_example, ToExample)


def test_unreadable_record_is_named() -> None:
    with pytest.raises(InputError, match=r"^some/file: not a readable image"):
        Decode().map({"image": b"text", "label": 0, "name": "some/file"})
