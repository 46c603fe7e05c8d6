"""Image file -> its content -> pixels, the same as PIL decodes.

A file is read as what its first bytes say, whatever its name ends in, and by no readers but those of `FORMATS`: some of
PIL's others start programs or hold little but history.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# PIL imports these two when it first meets them, and then all of its readers.
from PIL import Image, ImageOps, TiffImagePlugin, WebPImagePlugin  # noqa: F401

from twins_jax.errors import InputError, one_line
from twins_jax.files import require_regular

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
"""Formats that are decoded, by PIL's names: those of torchvision's image folders, and GIF, which is found under their
names. JPEG covers the MPO files of phones, and PPM covers PBM and PGM."""

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Of the files that are taken from folders, in any case: torchvision.datasets.folder.IMG_EXTENSIONS."""

MAX_PIXELS = 89_478_485
"""Largest image that is decoded, height x width: a quarter of a gigabyte as RGB (PIL.Image.MAX_IMAGE_PIXELS)."""

MAX_BYTES = 12 * MAX_PIXELS
"""Largest file that is read, a gibibyte: four samples of 16 bits a pixel, and half as much for all else in the file."""

LARGE_FILE = 1 << 24
"""Size in bytes above which the first bytes of a file decide if the others are read: few photographs are as large."""

MODES = ("1", "L", "P", "RGB", "LA", "PA", "RGBA", "CMYK", "YCbCr")
"""PIL's modes of 8-bit samples that `convert("RGB")` turns into the right colors."""

MODES_16 = ("I;16", "I;16L", "I;16B", "I;16N")
"""PIL's modes of one unsigned 16-bit sample, which `convert("RGB")` clips to 255."""

SIGNATURES = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "BMP": (b"BM",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "PostScript": (b"%!PS", b"\xc5\xd0\xd3\xc6"),
    "PDF": (b"%PDF",),
    "HTML, SVG or other XML": (b"<",),
    "Photoshop": (b"8BPS",),
    "JPEG 2000": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    "JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL "),
    "Windows metafile": (b"\xd7\xcd\xc6\x9a", b"\x01\0\0\0"),
    "ICO": (b"\0\0\x01\0", b"\0\0\x02\0"),
    "ZIP": (b"PK\x03\x04",),
    "gzip": (b"\x1f\x8b",),
    "a pointer of Git LFS to a file": (b"version https://git-lfs",),
}
"""First bytes of files that are found under the names of images, to say what a refused file is."""


def read_image(path: Path) -> bytes:
    """Returns the whole of a regular file of at most `MAX_BYTES`.

    Raises:
        InputError: the path leads to no file, a file that cannot be read, a pipe or a device, which may have no end,
            a file of more bytes, or one of more than `LARGE_FILE` that does not start as one of `FORMATS` does. The
            message starts with the path.
    """
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGE_FILE and not _has_format(start := file.peek(16)):
            raise InputError(f"{path}: not a readable image: {_describe(start)}")
        return file.read(size)


def read_size(path: Path) -> tuple[int, int]:
    """Returns the height and width in pixels of the image that `decode` makes of a file, from the file's header.

    Raises:
        InputError: as `read_image`, or the header cannot be read. The message starts with the path.
    """
    with _opened(path) as file:
        try:
            with Image.open(file, formats=FORMATS) as image:
                return image.height, image.width
        except Image.UnidentifiedImageError as error:
            file.seek(0)
            raise InputError(f"{path}: not a readable image: {_describe(file.read(16))}") from error
        except Exception as error:  # as in `decode`
            raise InputError(f"{path}: not a readable image: {one_line(error)}") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    """Opens a regular file of at most `MAX_BYTES`, and reports what the system refuses."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())  # of what is open: a link may lead elsewhere by now
            require_regular(path, status.st_mode)
            _check_size(status.st_size, str(path))
            yield file
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _open_without_waiting(path: str, flags: int) -> int:
    # Opening a pipe would wait for a writer, and a terminal could take control of the process.
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _check_size(size: int, name: str) -> None:
    if size > MAX_BYTES:
        raise InputError(f"{name}: not a readable image: {size:,} bytes; at most {MAX_BYTES:,} are read")


def _has_format(start: bytes) -> bool:
    """True if PIL's reader of one of `FORMATS` would try a file with these first bytes, at least 16."""
    Image.preinit()  # imports the readers that are not imported above
    accepts = (Image.OPEN[name][1] for name in FORMATS)
    return any(accept is None or accept(start[:16]) for accept in accepts)


def decode(data: bytes, name: str, *, exif_orientation: bool = False) -> np.ndarray:
    """Returns the pixels of an encoded image as uint8 [H, W, 3], RGB: those of PIL's `convert("RGB")`, as torchvision.

    Therefore gray is repeated, transparency is dropped and not laid on a background, color profiles are not applied,
    and of several pictures in a file the first is taken. Of a 16-bit gray sample the high byte is kept, as PIL does in
    RGB; its gray is white.

    Args:
        data: the whole file, of one of `FORMATS`.
        name: of the file, for messages.
        exif_orientation: turn and mirror the image as its EXIF data says, as viewers show it. That of a TIFF file is
            applied in any case, for PIL applies it.

    Raises:
        InputError: the file is of another format, is damaged or truncated, has more than `MAX_BYTES` or `MAX_PIXELS`,
            or samples that do not fit in RGB: signed, floating-point, of 12 or 32 bits, CIELAB. The message starts
            with `name`.
    """
    _check_size(len(data), name)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # reads the header
            return pixels(image, exif_orientation=exif_orientation)
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{name}: not a readable image: {_describe(data)}") from error
    except Exception as error:  # PIL's readers raise anything from OSError to SyntaxError on a damaged file
        raise InputError(f"{name}: not a readable image: {one_line(error)}") from error


def pixels(image: Image.Image, *, exif_orientation: bool = False) -> np.ndarray:
    """Returns the pixels of an image of PIL's as uint8 [H, W, 3], RGB; see `decode`.

    Raises:
        InputError: as `decode`; exceptions of PIL's readers, too, where the image is of a damaged file.
    """
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise InputError(f"{image.width} x {image.height} pixels; 1 to {MAX_PIXELS:,} are decoded")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiff(image)
    image.load()
    kind = image.format
    if exif_orientation:
        image = _upright(image)
    # PGM files of more than 8 bits have mode I, scaled to 16 bits.
    if image.mode in MODES_16 or (image.mode == "I" and kind == "PPM"):
        gray = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode not in MODES:
        raise InputError(f"{kind or 'an image'} with samples of PIL's mode {image.mode}; {_ALLOWED}")
    if "transparency" in image.info:
        # It is dropped all the same; converted with it, some files warn and others fail.
        image = image.copy()
        del image.info["transparency"]
    return np.array(image.convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data says nothing; its readers raise anything, as those of images do
        return image


_ALLOWED = "must be unsigned samples of 1, 2, 4, 8 or 16 bits: gray, palette, RGB, YCbCr or CMYK"


def _check_tiff(image: TiffImagePlugin.TiffImageFile) -> None:
    """Raises InputError for a layout whose samples PIL takes for others, or whose tiles would fill the memory."""
    tags = image.tag_v2
    bits, planar = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)), tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1)
    raw = tags.get(TiffImagePlugin.COMPRESSION, 1) == 1
    one_byte_planes = set(bits) == {8} and tags.get(TiffImagePlugin.FILLORDER, 1) == 1
    for layout, found in (
        ("signed or floating-point samples", set(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))) != {1}),
        ("12-bit samples", 12 in bits),
        ("16-bit samples whose zero is white", image.mode in MODES_16 and tags.get(262, 0) == 0),
        ("uncompressed planes of other than 8 bits", raw and planar == 2 and not one_byte_planes),
        ("extra planes", raw and planar == 2 and TiffImagePlugin.EXTRASAMPLES in tags),
        ("uncompressed subsampled YCbCr", raw and image.mode == "YCbCr" and tags.get(530, (2, 2)) != (1, 1)),
    ):
        if found:
            raise InputError(f"TIFF with {layout}; {_ALLOWED}")
    width, height = tags.get(TiffImagePlugin.TILEWIDTH, 1), tags.get(TiffImagePlugin.TILELENGTH, 1)
    if width * height > MAX_PIXELS:
        raise InputError(f"TIFF with tiles of {width} x {height} pixels; at most {MAX_PIXELS:,} are decoded")


def _describe(data: bytes) -> str:
    if not data:
        return "the file is empty"
    found = next((name for name, starts in SIGNATURES.items() if data.startswith(starts)), None)
    if found in FORMATS or data[8:12] == b"WEBP":
        return f"{found or 'WEBP'} that is damaged, or of a kind that is not read; {_ALLOWED}"
    if data[4:8] == b"ftyp":
        found = f"a file of type {data[8:12].decode('ascii', 'replace')} (AVIF, HEIF or a video)"
    return f"{found or 'unknown format'}, first bytes {data[:8]!r}; formats are {', '.join(FORMATS)}"
