import io
import os
import re
import subprocess
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFile

from tests.scripts.fuzz_images import fuzz
from tests.support.images import chunk, of_all_kinds, picture, png, saved, tiff
from tests.support.paths import SHARED_DATA
from train.data.decode import decode
from twins_jax import decode as decode_module
from twins_jax.decode import LARGE_FILE, MAX_BYTES, MAX_PIXELS, read_image
from twins_jax.errors import InputError

IMAGENET_SAMPLE = SHARED_DATA / "imagenet-sample"


def by_pil(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def jpeg(image: Image.Image, **options: Any) -> bytes:
    return saved(image, "JPEG", **options)


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


def test_orientation_on_request() -> None:
    """6: the first row is the right side, the first column the top."""
    image = picture(40, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    for file_format in ("JPEG", "PNG"):
        upright = decode(saved(image, file_format, exif=exif), "", exif_orientation=True)
        np.testing.assert_array_equal(upright, np.rot90(decode(saved(image, file_format), ""), -1))
    assert decode(saved(image, "JPEG"), "", exif_orientation=True).shape == (30, 40, 3)


def test_jpeg_that_only_pil_forgives() -> None:
    """Some files of ImageNet have bytes between their segments, which libjpeg warns of and skips."""
    data = jpeg(picture(40, 30))
    assert data[20:22] == b"\xff\xdb"  # the second segment
    data = data[:20] + b"\0\0" + data[20:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(data, "RGB")
    np.testing.assert_array_equal(decode(data, ""), by_pil(data))


SAMPLES = np.array([[0, 1, 127], [128, 254, 255]], np.uint8)
WIDE = np.array([[0, 255, 256], [0x1234, 0x8000, 0xFFFF]], np.uint16)
COLORS = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14
WIDE_COLORS = COLORS.astype(np.uint16) * 256 + 255 - COLORS
ALPHA = np.array([[[0], [9], [255]], [[80], [1], [200]]], np.uint8)
PALETTE = np.arange(48, dtype=np.uint8).reshape(16, 3) * 5


def gray(samples: np.ndarray) -> np.ndarray:
    return np.repeat(samples[:, :, None], 3, axis=2).astype(np.uint8)


def rows(samples: np.ndarray) -> np.ndarray:
    """The samples as PNG and PNM store them: high bytes first."""
    return samples.astype(samples.dtype.newbyteorder(">")).view(np.uint8).reshape(2, -1)


def little(samples: np.ndarray) -> list[bytes]:
    return [samples.astype(samples.dtype.newbyteorder("<")).tobytes()]


def planes(samples: np.ndarray) -> list[bytes]:
    return [little(plane)[0] for plane in samples.transpose(2, 0, 1)]


ONES = np.array([[0b01000000], [0b10100000]], np.uint8)
PAIRS = np.array([[0b00011000], [0b11000000]], np.uint8)
NIBBLES = np.array([[0x01, 0x70], [0x8E, 0xF0]], np.uint8)  # 0 1 7, 8 14 15
CMYK = np.concatenate([COLORS, ALPHA], axis=2)
TRANSPARENT = chunk(b"PLTE", PALETTE.tobytes()) + chunk(b"tRNS", bytes(range(0, 160, 10)))

# The pixels of a file, or the end of the message that refuses it.
READ: dict[str, tuple[bytes, np.ndarray]] = {
    "PNG, 1 bit": (png(ONES, 1, 0, width=3), gray(np.array([[0, 255, 0], [255, 0, 255]]))),
    "PNG, 2 bits": (png(PAIRS, 2, 0, width=3), gray(np.array([[0, 85, 170], [255, 0, 0]]))),
    "PNG, 4 bits": (png(NIBBLES, 4, 0, width=3), gray(np.array([[0, 17, 119], [136, 238, 255]]))),
    "PNG, 8 bits": (png(SAMPLES, 8, 0, width=3), gray(SAMPLES)),
    "PNG, 16 bits": (png(rows(WIDE), 16, 0, width=3), gray(WIDE >> 8)),
    "PNG, one gray transparent": (png(SAMPLES, 8, 0, width=3, before=chunk(b"tRNS", b"\0\x7f")), gray(SAMPLES)),
    "PNG, RGB": (png(rows(COLORS), 8, 2, width=3), COLORS),
    "PNG, RGB, 16 bits": (png(rows(WIDE_COLORS), 16, 2, width=3), COLORS),
    "PNG, palette": (png(NIBBLES, 4, 3, width=3, before=TRANSPARENT), PALETTE[[[0, 1, 7], [8, 14, 15]]]),
    "PNG, LA": (png(rows(np.concatenate([SAMPLES[:, :, None], ALPHA], 2)), 8, 4, width=3), gray(SAMPLES)),
    "PNG, LA, 16 bits": (png(rows(np.stack([WIDE, WIDE], 2)), 16, 4, width=3), gray(WIDE >> 8)),
    "PNG, RGBA": (png(rows(CMYK), 8, 6, width=3), COLORS),
    "PNG, RGBA, 16 bits": (png(rows(np.concatenate([WIDE_COLORS, WIDE[:, :, None]], 2)), 16, 6, width=3), COLORS),
    "PGM, 10 bits": (b"P5 3 1 1023\n\0\0\2\0\3\xff", gray(np.array([[0, 128, 255]]))),
    "PGM, 16 bits": (b"P5 3 2 65535\n" + rows(WIDE).tobytes(), gray(WIDE >> 8)),
    "PPM, 16 bits": (b"P6 3 2 65535\n" + rows(COLORS.astype(np.uint16) * 257).tobytes(), COLORS),
    "PBM": (b"P4 3 2\n\x40\xa0", gray(np.array([[255, 0, 255], [0, 255, 0]]))),
    "BMP, 1 bit": (saved(Image.fromarray(SAMPLES > 127), "BMP"), gray((SAMPLES > 127) * 255)),
    "BMP, palette": (saved(Image.fromarray(SAMPLES), "BMP"), gray(SAMPLES)),
    "BMP, RGBA": (saved(Image.fromarray(CMYK, "RGBA"), "BMP"), COLORS),
    "GIF": (saved(Image.fromarray(SAMPLES), "GIF", transparency=1), gray(SAMPLES)),
    "WEBP, RGBA": (saved(Image.fromarray(CMYK, "RGBA"), "WEBP", lossless=True, exact=True), COLORS),
    "TIFF, zero is white": (tiff(little(SAMPLES), 3, 2, [8], 0), gray(255 - SAMPLES)),
    "TIFF, 16 bits": (tiff(little(WIDE), 3, 2, [16], 1), gray(WIDE >> 8)),
    "TIFF, 16 bits, big-endian": (saved(Image.fromarray(WIDE.astype(">u2")), "TIFF"), gray(WIDE >> 8)),
    "TIFF, 16 bits, compressed": (saved(Image.fromarray(WIDE), "TIFF", compression="tiff_lzw"), gray(WIDE >> 8)),
    "TIFF, RGB, 16 bits": (tiff(little(WIDE_COLORS), 3, 2, [16] * 3, 2), COLORS),
    "TIFF, planes": (tiff(planes(COLORS), 3, 2, [8] * 3, 2), COLORS),
    "TIFF, planes of 16 bits, compressed": (
        tiff([zlib.compress(plane) for plane in planes(WIDE_COLORS)], 3, 2, [16] * 3, 2, {259: [8]}),
        COLORS,
    ),
    "TIFF, alpha": (tiff(little(CMYK), 3, 2, [8] * 4, 2, {338: [2]}), COLORS),
    "TIFF, colors multiplied by alpha": (
        tiff(little(np.array([[[9, 18, 27, 51]]], np.uint8)), 1, 1, [8] * 4, 2, {338: [1]}),
        np.array([[[45, 90, 135]]], np.uint8),
    ),
    "TIFF, CMYK": (
        tiff(little(np.array([[[0, 255, 51, 0], [0, 0, 0, 55]]], np.uint8)), 2, 1, [8] * 4, 5),
        np.array([[[255, 0, 204], [200, 200, 200]]], np.uint8),
    ),
    "TIFF, turned": (tiff(little(SAMPLES), 3, 2, [8], 1, {274: [6]}), np.rot90(gray(SAMPLES), -1)),
    "TIFF of several": (
        saved(Image.fromarray(SAMPLES), "TIFF", save_all=True, append_images=[Image.fromarray(~SAMPLES)]),
        gray(SAMPLES),
    ),
    "PNG of several": (
        saved(Image.fromarray(COLORS), "PNG", save_all=True, append_images=[Image.fromarray(~COLORS)]),
        COLORS,
    ),
}  # fmt: skip
JPEG_12 = jpeg(picture(8, 8)).replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c")
BOMB = zlib.compress(bytes(2**23))
REFUSED: dict[str, tuple[bytes, str]] = {
    "signed, 8 bits": (tiff(little(SAMPLES), 3, 2, [8], 1, {339: [2]}), "TIFF with signed or floating-point samples"),
    "signed, 16 bits": (tiff(little(WIDE), 3, 2, [16], 1, {339: [2]}), "TIFF with signed or floating-point samples"),
    "signed, 32 bits": (saved(Image.new("I", (3, 2)), "TIFF"), "TIFF with signed or floating-point samples"),
    "float": (saved(Image.new("F", (3, 2)), "TIFF"), "TIFF with signed or floating-point samples"),
    "32 bits": (tiff(little(WIDE.astype(np.uint32)), 3, 2, [32], 1), "TIFF with samples of PIL's mode I"),
    "12 bits": (tiff([bytes(6)], 2, 2, [12], 1), "TIFF with 12-bit samples"),
    "16 bits, zero is white": (tiff(little(WIDE), 3, 2, [16], 0), "TIFF with 16-bit samples whose zero is white"),
    "planes of 16 bits": (tiff(planes(WIDE_COLORS), 3, 2, [16] * 3, 2), "uncompressed planes of other than 8 bits"),
    "extra planes": (tiff(planes(CMYK), 3, 2, [8] * 4, 2, {338: [2]}), "TIFF with extra planes"),
    "gray multiplied by alpha": (tiff([bytes(12)], 3, 2, [8, 8], 1, {338: [1]}), "TIFF with samples of PIL's mode La"),
    "LAB": (tiff(little(COLORS), 3, 2, [8] * 3, 8), "TIFF with samples of PIL's mode LAB"),
    "YCbCr": (tiff(little(COLORS), 3, 2, [8] * 3, 6), "TIFF with uncompressed subsampled YCbCr"),
    "seven samples": (
        tiff([bytes(42)], 3, 2, [8] * 7, 2, {338: [0] * 4}),
        "TIFF that is damaged, or of a kind that is not read",
    ),
    "large tiles": (tiff(little(SAMPLES), 3, 2, [8], 1, {322: [16384], 323: [16384]}), "tiles of 16384 x 16384 pixels"),
    "PFM": (b"Pf 1 1 -1.0\n" + bytes(4), "PPM with samples of PIL's mode F"),
    "JPEG, 12 bits": (
        jpeg(picture(8, 8)).replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
        "JPEG that is damaged, or of a kind that is not read",
    ),
    "text that explodes": (png(SAMPLES, 8, 0, width=3, before=chunk(b"zTXt", b"a\0\0" + BOMB)), "too large"),
    "profile that explodes": (png(SAMPLES, 8, 0, width=3, before=chunk(b"iCCP", b"a\0\0" + BOMB)), ""),
    "nothing": (b"", "the file is empty"),
    "PostScript": (saved(picture(8, 8), "EPS"), "PostScript, first bytes b'%!PS-Ado'; formats are JPEG, PNG, "),
    "PDF": (b"%PDF-1.7\n", "PDF, first bytes b'%PDF-1.7'"),
    "SVG": (b"<svg xmlns=''>", "HTML, SVG or other XML, first bytes b'<svg xml'"),
    "AVIF": (saved(picture(16, 16), "AVIF"), r"a file of type avif \(AVIF, HEIF or a video\)"),
    "others": (b"hello, world", "unknown format, first bytes b'hello, w'"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS to a file"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", READ)
def test_pixels(kind: str) -> None:
    data, expected = READ[kind]
    out = decode(data, "")
    np.testing.assert_array_equal(out, expected)
    assert (out.dtype, out.flags.c_contiguous, out.flags.writeable) == (np.uint8, True, True)


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    data, reason = REFUSED[kind]
    with pytest.raises(InputError, match=f"^some/file: not a readable image: .*{reason}") as error:
        decode(data, "some/file")
    assert "\n" not in str(error.value)


def test_equals_pil_as_torchvision_does() -> None:
    """Every kind but those whose samples PIL clips, or whose colors it guesses."""
    files = of_all_kinds()
    differ = {"TIFF 16", "PNG 16", "PGM 16", "TIFF LAB", "TIFF float"}
    assert differ < files.keys()
    for name in files.keys() - differ:
        np.testing.assert_array_equal(decode(files[name], name), by_pil(files[name]), err_msg=name)


def test_inverted_cmyk_and_ycck() -> None:
    """Adobe's files hold 255 less each ink. Those of YCCK are such files, C M Y taken for the negative of R G B."""
    red = jpeg(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100)
    assert np.abs(decode(red, "").astype(int) - (255, 0, 0)).max() <= 2
    ycck = jpeg(Image.new("CMYK", (8, 8), (155, 127, 127, 0)), quality=100)  # stored as Y 100, Cb 128, Cr 128
    place = ycck.index(b"Adobe") + 11
    assert ycck[place] == 0
    ycck = ycck[:place] + b"\2" + ycck[place + 1 :]
    assert np.abs(decode(ycck, "").astype(int) - 155).max() <= 2


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_orientation_is_ignored_in_other_formats(file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(saved(picture(40, 30), file_format, exif=exif), "").shape == (30, 40, 3)


def test_the_name_does_not_decide() -> None:
    assert decode(saved(picture(4, 3), "GIF"), "cat.jpg").shape == (3, 4, 3)


def test_damaged_files() -> None:
    result = fuzz(200, seed=0)
    assert (result["wrong"], result["crashed"], result["failures"]) == (0, 0, {})
    assert result["image"] + result["refused"] == 200
    assert result["image"] > 20
    assert result["peak_mib"] < 600


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
    with pytest.raises(InputError, match=r"^some/file: not a readable image: 60 x 50 pixels; 1 to 2,999 are decoded"):
        decode(data, "some/file")


@pytest.mark.parametrize(
    ("start", "size", "reason"),
    [
        (b"\xff\xd8\xff", MAX_BYTES + 1, "1,073,741,821 bytes; at most 1,073,741,820 are read"),
        (b"", 3 << 30, "3,221,225,472 bytes; at most 1,073,741,820 are read"),
        (b"", MAX_BYTES, r"unknown format, first bytes b'\\x00"),
        (b"PK\x03\x04", LARGE_FILE + 1, r"ZIP, first bytes b'PK"),
    ],
)
def test_refused_before_it_is_read(tmp_path: Path, start: bytes, size: int, reason: str) -> None:
    path = tmp_path / "zz.jpg"
    path.write_bytes(start)
    os.truncate(path, size)  # sparse: takes no space
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=f"^{re.escape(str(path))}: not a readable image: {reason}"):
            read_image(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_bound_fits_the_largest_image() -> None:
    assert MAX_BYTES > 8 * MAX_PIXELS + 2**24  # RGBA of 16 bits, uncompressed


@pytest.mark.parametrize("kind", READ)
def test_large_file_is_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the first bytes accepts what is decoded."""
    monkeypatch.setattr(decode_module, "LARGE_FILE", 0)
    (tmp_path / "file").write_bytes(READ[kind][0])
    assert read_image(tmp_path / "file") == READ[kind][0]


def test_oversized_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set in array_record hands out whole files."""
    data = jpeg(picture(8, 8))
    monkeypatch.setattr(decode_module, "MAX_BYTES", len(data))
    assert decode(data, "").shape == (8, 8, 3)
    monkeypatch.setattr(decode_module, "MAX_BYTES", len(data) - 1)
    with pytest.raises(InputError, match=r"^set\[3\]: not a readable image: \d+ bytes; at most \d+ are read$"):
        decode(data, "set[3]")
