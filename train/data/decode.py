"""Encoded image file -> pixels, the same as PIL decodes."""

import io

import numpy as np
import simplejpeg
from PIL import Image

from twins_jax.errors import InputError

SAME_COLORS = ("YCbCr", "Gray", "RGB")
"""Color spaces of a JPEG file that simplejpeg converts to the same RGB as PIL: both by libjpeg-turbo."""


def decode(data: bytes, name: str) -> np.ndarray:
    """Returns the pixels of an encoded image of any format that PIL reads, as uint8 [H, W, 3], RGB.

    Raises:
        InputError: PIL cannot read all of the image; the message starts with `name`.
    """
    if data.startswith(b"\xff\xd8\xff"):
        try:
            height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
            # PIL converts CMYK in its own way, and guards against images that would fill the memory.
            if colors in SAME_COLORS and height * width <= (Image.MAX_IMAGE_PIXELS or 0):
                return simplejpeg.decode_jpeg(data, "RGB")
        except ValueError:
            pass  # a damaged file, or one with extra bytes, which PIL may forgive
    try:
        return np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    except Exception as error:  # PIL's readers raise anything from OSError to SyntaxError on a damaged file
        raise InputError(f"{name}: not a readable image: {error}") from error
