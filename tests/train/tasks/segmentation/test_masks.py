import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.images import chunk, picture, png, saved
from train.tasks.segmentation.masks import MAX_CLASSES, check_classes, decode_mask
from twins_jax.errors import InputError

LABELS = np.random.default_rng(0).integers(0, 256, (13, 17), np.uint8)


def palette_png(labels: np.ndarray) -> bytes:
    image = Image.fromarray(labels)
    image.putpalette(np.random.default_rng(1).integers(0, 256, 768, np.uint8).tobytes())
    return saved(image, "PNG", transparency=3)


@pytest.mark.parametrize("encode", [lambda labels: saved(Image.fromarray(labels), "PNG"), palette_png])
def test_samples_of_gray_and_palette(encode: "object") -> None:
    decoded = decode_mask(encode(LABELS), "a.png")  # type: ignore[operator]
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, LABELS)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("color", [0, 3])
def test_samples_of_few_bits_are_not_stretched(bits: int, color: int) -> None:
    labels = LABELS[:, :16] % 2**bits
    digits = (labels[..., None] >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(digits.reshape(len(labels), -1).astype(bool), axis=1)
    palette = chunk(b"PLTE", bytes(range(3 * 2**bits))) if color == 3 else b""
    np.testing.assert_array_equal(decode_mask(png(rows, bits, color, width=16, before=palette), "a.png"), labels)


HUGE = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
GRAY = saved(Image.fromarray(LABELS), "PNG")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (saved(picture(9, 7), "PNG"), "not a mask: RGB samples of 8 bits; must be one class index a pixel"),
        (saved(picture(9, 7).convert("RGBA"), "PNG"), "not a mask: RGBA samples of 8 bits; must"),
        (saved(picture(9, 7).convert("LA"), "PNG"), "not a mask: gray and alpha samples of 8 bits; must"),
        (saved(Image.fromarray(LABELS.astype(np.uint16)), "PNG"), "not a mask: gray samples of 16 bits; must"),
        (saved(picture(9, 7).convert("L"), "JPEG"), "not a readable mask: must be a PNG file, first bytes are b'"),
        (b"", "not a readable mask: must be a PNG file, first bytes are b''"),
        (GRAY[:20], "not a readable mask: must be a PNG file"),
        (GRAY[:-60], "not a readable mask: "),
        (GRAY.replace(b"IDAT", b"JDAT"), "not a readable mask: "),
        (HUGE + chunk(b"IDAT", zlib.compress(bytes(1000))), "not a readable mask: 60000 x 60000 pixels; 1 to 89"),
    ],
)
def test_other_files_are_refused_in_one_line(data: bytes, message: str) -> None:
    with pytest.raises(InputError) as raised:
        decode_mask(data, "folder/a.png")
    assert str(raised.value).startswith(f"folder/a.png: {message}")
    assert len(str(raised.value).splitlines()) == 1


def test_classes() -> None:
    most = tuple(f"class {number}" for number in range(MAX_CLASSES))
    assert check_classes(most, Path("f")) == most
    for names, message in (
        ((), "f: holds 0 classes; must hold 1 to 255"),
        ((*most, "one more"), "f: holds 256 classes; must hold 1 to 255"),
        (("a", "b", "a"), "f: holds 'a' 2 times; the classes must have distinct names"),
    ):
        with pytest.raises(InputError, match=message):
            check_classes(names, Path("f"))
