"""Encoded images -> pixels, in training: JPEG by a faster decoder of the same pixels as PIL's."""

import numpy as np
import simplejpeg

from twins_jax import decode as by_pil

SAME_COLORS = ("YCbCr", "Gray", "RGB")
"""Color spaces of a JPEG file that simplejpeg converts to the same RGB as PIL: both by libjpeg-turbo."""


def decode(data: bytes, name: str) -> np.ndarray:
    """Returns the pixels of an encoded image as uint8 [H, W, 3], RGB: `twins_jax.decode.decode`, with its errors.

    The orientation in EXIF data is not applied, as torchvision's folders do not apply it.
    """
    if data.startswith(b"\xff\xd8\xff") and len(data) <= by_pil.MAX_BYTES:
        try:
            height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
            # PIL converts CMYK in its own way.
            if colors in SAME_COLORS and height * width <= by_pil.MAX_PIXELS:
                return simplejpeg.decode_jpeg(data, "RGB")
        except ValueError:
            pass  # a damaged file, or one with extra bytes, which PIL may forgive
    return by_pil.decode(data, name)
