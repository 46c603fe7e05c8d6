import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFile

from tests.support.paths import SHARED_DATA
from train.data import decode as decode_module
from train.data.decode import decode
from twins_jax.errors import InputError

IMAGENET_SAMPLE = SHARED_DATA / "imagenet-sample"


def picture(width: int, height: int) -> Image.Image:
    """Smooth shapes with some noise, which JPEG keeps better than noise alone."""
    rng = np.random.default_rng(width)
    small = Image.fromarray(rng.integers(0, 256, (5, 4, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(small) ^ rng.integers(0, 8, (height, width, 3), np.uint8)).astype(np.uint8))


def by_pil(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def jpeg(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (17, 33), (64, 48), (131, 97)])
@pytest.mark.parametrize(
    "options",
    [
        *({"subsampling": subsampling, "quality": 90} for subsampling in ("4:4:4", "4:2:2", "4:2:0")),
        {"quality": 20},
        {"progressive": True},
        {"keep_rgb": True, "subsampling": 0},
        {"restart_marker_blocks": 1},
    ],
)
def test_jpeg_equals_pil(size: tuple[int, int], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg(picture(*size), **options)
    expected = by_pil(data)
    monkeypatch.setattr(Image, "open", None)  # all of these are left to the faster decoder
    actual = decode(data, "")
    assert (actual.dtype, actual.flags.c_contiguous) == (np.uint8, True)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_of_other_colors_equals_pil(mode: str) -> None:
    data = jpeg(picture(40, 30).convert(mode))
    np.testing.assert_array_equal(decode(data, ""), by_pil(data))


@pytest.mark.skipif(not IMAGENET_SAMPLE.exists(), reason="needs shared/data/imagenet-sample beside the project")
def test_imagenet_equals_pil() -> None:
    for path in sorted(IMAGENET_SAMPLE.glob("*/*"))[::4]:
        np.testing.assert_array_equal(decode(path.read_bytes(), ""), by_pil(path.read_bytes()))


def test_orientation_is_ignored_as_by_pil() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    data = jpeg(picture(40, 30), exif=exif)
    assert decode(data, "").shape == (30, 40, 3)


def test_jpeg_that_only_pil_forgives() -> None:
    """Some files of ImageNet have bytes between their segments, which libjpeg warns of and skips."""
    data = jpeg(picture(40, 30))
    assert data[20:22] == b"\xff\xdb"  # the second segment
    data = data[:20] + b"\0\0" + data[20:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(data, "RGB")
    np.testing.assert_array_equal(decode(data, ""), by_pil(data))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "I;16"])
def test_png_to_rgb(mode: str, tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    (picture(6, 5).convert("L") if mode == "I;16" else picture(6, 5)).convert(mode).save(file)
    out = decode(file.read_bytes(), "")
    assert (out.shape, out.dtype, out.flags.c_contiguous, out.flags.writeable) == ((5, 6, 3), np.uint8, True, True)


@pytest.mark.parametrize("file_format", ["jpeg", "png", "webp", "bmp"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.6])
def test_truncated_image(encode: Callable[..., bytes], file_format: str, keep: float) -> None:
    data = encode(np.asarray(picture(60, 50)), file_format)
    assert decode(data, "").shape == (50, 60, 3)
    with pytest.raises(InputError, match=r"^some/file: not a readable image: .+"):
        decode(data[: int(len(data) * keep)], "some/file")


@pytest.mark.parametrize("file_format", ["jpeg", "png", "webp", "bmp", "ppm", "tiff", "gif"])
def test_oversized_image(encode: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch, file_format: str) -> None:
    data = encode(np.asarray(picture(60, 50)), file_format)
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 3000)
    assert decode(data, "").shape == (50, 60, 3)
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 2999)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # the header alone decides
    with pytest.raises(
        InputError, match=r"^some/file: not a readable image: 60 x 50 pixels; at most 2,999 are decoded"
    ):
        decode(data, "some/file")
