"""Masks: PNG files of one channel, whose samples are indices of classes."""

import collections
import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from twins_jax.decode import MAX_PIXELS
from twins_jax.errors import InputError, one_line, shown
from twins_jax.segmentation.palette import IGNORED

MAX_CLASSES = IGNORED
"""Classes of a data set: those that one byte can name beside `IGNORED`."""

_HEADER = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_GRAY, _PALETTE = 0, 3
_COLORS = {_GRAY: "gray", 2: "RGB", _PALETTE: "palette", 4: "gray and alpha", 6: "RGBA"}


def decode_mask(data: bytes, name: str) -> np.ndarray:
    """Returns the samples of a gray or palette PNG file of 1, 2, 4 or 8 bits, as they are stored, as uint8 [H, W].

    Args:
        data: the whole file.
        name: of the file, for messages.

    Raises:
        InputError: the file is no PNG, has other samples, is damaged or truncated, or has more than
            `twins_jax.decode.MAX_PIXELS`. The message starts with `name`.
    """
    if not data.startswith(_HEADER) or len(data) < len(_HEADER) + 10:
        raise InputError(f"{name}: not a readable mask: must be a PNG file, first bytes are {data[:8]!r}")
    width, height, bits, color = struct.unpack_from(">IIBB", data, len(_HEADER))
    if color not in (_GRAY, _PALETTE) or bits > 8:
        raise InputError(
            f"{name}: not a mask: {_COLORS.get(color, 'unknown')} samples of {bits} bits; must be one class index a "
            "pixel: gray or palette of at most 8 bits"
        )
    if not 0 < width * height <= MAX_PIXELS:
        raise InputError(f"{name}: not a readable mask: {width} x {height} pixels; 1 to {MAX_PIXELS:,} are decoded")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            samples = np.asarray(image).astype(np.uint8)
    except Exception as error:  # PIL's reader raises anything from OSError to SyntaxError on a damaged file
        raise InputError(f"{name}: not a readable mask: {one_line(error)}") from error
    # PIL stretches gray of 2 and 4 bits to 0..255.
    return samples // (255 // (2**bits - 1)) if color == _GRAY and bits in (2, 4) else samples


def check_classes(names: tuple[str, ...], path: Path) -> tuple[str, ...]:
    """Returns the names of the classes; raises InputError if they are none, too many or not distinct.

    Args:
        names: by class index.
        path: the file that they come from.
    """
    if not 1 <= len(names) <= MAX_CLASSES:
        raise InputError(f"{path}: holds {len(names)} classes; must hold 1 to {MAX_CLASSES}")
    name, count = collections.Counter(names).most_common(1)[0]
    if count > 1:
        raise InputError(f"{path}: holds {shown(name)!r} {count} times; the classes must have distinct names")
    return names
