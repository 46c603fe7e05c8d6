"""Small image files of all kinds, written by PIL or, where it cannot, byte by byte."""

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

TYPES = {1: "B", 3: "H", 4: "I"}
"""TIFF: codes of the types byte, short and long, with those of `struct`."""


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def tiff(
    planes: Sequence[bytes],
    width: int,
    height: int,
    bits: Sequence[int],
    photometric: int,
    more: Mapping[int, Any] = {},
) -> bytes:
    """Writes a little-endian file of one strip a plane.

    Args:
        planes: the strips' bytes; more than one are planes one after the other.
        width: of the image.
        height: of the image.
        bits: of each sample.
        photometric: what the samples mean: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr, 8 LAB.
        more: further tags, lists of shorts by number, which may replace the others.
    """
    tags: dict[int, tuple[int, Sequence[int]]] = {
        256: (3, [width]), 257: (3, [height]), 258: (3, bits), 259: (3, [1]), 262: (3, [photometric]),
        273: (4, [0] * len(planes)), 277: (3, [len(bits)]), 278: (3, [height]), 279: (4, [*map(len, planes)]),
        284: (3, [1 if len(planes) == 1 else 2]),
    }  # fmt: skip
    tags |= {number: (3, values) for number, values in more.items()}

    def pack(kind: int, values: Sequence[int]) -> bytes:
        return struct.pack(f"<{len(values)}{TYPES[kind]}", *values)

    start = 8 + 2 + 12 * len(tags) + 4
    start += sum(len(pack(*tag)) for tag in tags.values() if len(pack(*tag)) > 4)
    tags[273] = (4, [start + sum(map(len, planes[:i])) for i in range(len(planes))])
    entries, values = b"", b""
    for number, (kind, numbers) in sorted(tags.items()):
        value = pack(kind, numbers)
        entries += struct.pack("<HHI", number, kind, len(numbers))
        if len(value) > 4:
            entries += struct.pack("<I", 8 + 2 + 12 * len(tags) + 4 + len(values))
            values += value
        else:
            entries += value.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + values + b"".join(planes)


def chunk(kind: bytes, data: bytes) -> bytes:
    """Writes a chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: np.ndarray, bits: int, color: int, *, width: int, before: bytes = b"") -> bytes:
    """Writes a PNG file.

    Args:
        rows: uint8 [H, bytes in a row], the samples as they are stored.
        bits: of a sample.
        color: 0 gray, 2 RGB, 3 palette, 4 gray with alpha, 6 RGBA.
        width: of the image.
        before: chunks before the pixels.
    """
    header = struct.pack(">IIBBBBB", width, len(rows), bits, color, 0, 0, 0)
    body = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Draws smooth shapes with some noise, which JPEG keeps better than noise alone."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 4, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(small) ^ rng.integers(0, 8, (height, width, 3), np.uint8)).astype(np.uint8))


def of_all_kinds() -> dict[str, bytes]:
    """Writes a small file of each format that is decoded, in each of its modes."""
    rgb = picture(23, 17)
    gray16 = np.arange(23 * 17, dtype=np.uint16).reshape(17, 23) * 160
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    files = {
        f"{file_format} {mode}": saved(rgb.convert(mode), file_format)
        for file_format, modes in {
            "JPEG": ("L", "RGB", "CMYK"),
            "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
            "WEBP": ("RGB", "RGBA"),
            "BMP": ("1", "L", "P", "RGB", "RGBA"),
            "PPM": ("1", "L", "RGB"),
            "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"),
            "GIF": ("1", "L", "P", "RGBA"),
        }.items()
        for mode in modes
    }
    for name, options in {
        "progressive": {"progressive": True},
        "4:4:4": {"subsampling": 0},
        "restarts": {"restart_marker_blocks": 1},
        "RGB": {"keep_rgb": True},
        "EXIF": {"exif": exif, "comment": b"comment", "icc_profile": bytes(200)},
    }.items():
        files[f"JPEG {name}"] = saved(rgb, "JPEG", **options)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd"):
        files[f"TIFF {compression}"] = saved(rgb, "TIFF", compression=compression)
    files["TIFF group4"] = saved(rgb.convert("1"), "TIFF", compression="group4")
    files["TIFF 16"] = saved(Image.fromarray(gray16), "TIFF")
    files["TIFF float"] = saved(rgb.convert("F"), "TIFF")
    planes = [bytes(plane) for plane in np.asarray(rgb).transpose(2, 0, 1)]
    files["TIFF planes"] = tiff(planes, 23, 17, [8, 8, 8], 2)
    files["PNG 16"] = saved(Image.fromarray(gray16), "PNG")
    files["PNG RGB 16"] = png(np.arange(17 * 138, dtype=np.uint8).reshape(17, 138), 16, 2, width=23)
    text = chunk(b"zTXt", b"title\0\0" + zlib.compress(b"text")) + chunk(b"gAMA", bytes([0, 0, 177, 143]))
    files["PNG text"] = png(
        np.arange(17 * 23, dtype=np.uint16).astype(np.uint8).reshape(17, 23), 8, 0, width=23, before=text
    )
    files["PGM 16"] = b"P5 23 17 65535\n" + gray16.astype(">u2").tobytes()
    files["PPM plain"] = b"P3 2 1 255\n0 1 2 3 4 5\n"
    frames = [picture(23, 17, seed) for seed in (1, 2)]
    for file_format in ("GIF", "PNG", "WEBP", "TIFF", "MPO"):
        files[f"{file_format} of several"] = saved(rgb, file_format, save_all=True, append_images=frames)
    return files
