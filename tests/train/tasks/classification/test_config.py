import re
from typing import Any

import pytest

from train.tasks.classification.config import ClassificationDataConfig
from twins_jax.errors import InputError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", ""),
        ("image_size", 0),
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.9, 0.5)),
        ("crop_scale", (0.5, 1.5)),
        ("crop_ratio", (0.0, 1.0)),
        ("crop_ratio", (2.0, 1.0)),
        ("crop_ratio", (1.0, float("inf"))),
        ("flip", -0.1),
        ("flip", 1.1),
        ("flip", float("nan")),
        ("rand_augment_layers", -1),
        ("rand_augment_magnitude", -0.5),
        ("rand_augment_magnitude", 10.5),
        ("rand_augment_magnitude", float("nan")),
        ("rand_augment_std", -0.1),
        ("rand_augment_std", float("inf")),
        ("rand_augment_std", float("nan")),
        ("repeated_augmentation", 0),
        ("eval_crop", 0.0),
        ("eval_crop", 1.01),
        ("threads", 0),
        ("workers", -1),
    ],
)
def test_field_out_of_range(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^data\.{field}={re.escape(repr(value))}: must be "):
        ClassificationDataConfig(**{field: value})


def test_folder_needs_a_root() -> None:
    with pytest.raises(InputError, match=r"^data\.dir=''"):
        ClassificationDataConfig(source="folder")
    ClassificationDataConfig(source="folder", dir="somewhere")


def test_command_line() -> None:
    tyro = pytest.importorskip("tyro")
    config = tyro.cli(ClassificationDataConfig, args=["--source", "imagenet2012:5.1.0", "--crop-scale", "0.2", "0.9"])
    assert config == ClassificationDataConfig(source="imagenet2012:5.1.0", crop_scale=(0.2, 0.9))


def test_default_augments_with_crop_and_flip_only() -> None:
    config = ClassificationDataConfig()
    assert (config.rand_augment_layers, config.repeated_augmentation) == (0, 1)
