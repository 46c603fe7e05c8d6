import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def encoded(pixels: np.ndarray, file_format: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format)
    return file.getvalue()


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    return encoded


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 images in train/ and 11 in val/, 3 classes; the red channel is the image's number, the others are noise."""
    root = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 11)):
        for number in range(count):
            pixels = rng.integers(0, 256, (9, 12, 3), np.uint8)
            pixels[..., 0] = number
            path = root / split / f"class{number * 3 // count}" / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(pixels))
    return root
