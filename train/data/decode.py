"""Encoded images -> pixels, in training: JPEG by a faster decoder of the same pixels as PIL's."""

import numpy as np
import simplejpeg

from twins_jax import decode as by_pil

SAME_COLORS = ("YCbCr", "Gray", "RGB")
"""Color spaces of a JPEG file that simplejpeg converts to the same RGB as PIL: both by libjpeg-turbo."""


EXIF = b"Exif\0\0"
"""Start of a JPEG file's EXIF data, which is among its first segments; each has 64 KiB at most."""


def decode(data: bytes, name: str, *, exif_orientation: bool = False) -> np.ndarray:
    """Returns the pixels of an encoded image as uint8 [H, W, 3], RGB: `twins_jax.decode.decode`, with its errors.

    Args:
        data: the encoded image.
        name: for the errors.
        exif_orientation: turn and mirror the image as its EXIF data says, as OpenCV does. torchvision's folders do not.
    """
    is_plain = not (exif_orientation and EXIF in data[: 1 << 17])
    if data.startswith(b"\xff\xd8\xff") and len(data) <= by_pil.MAX_BYTES and is_plain:
        try:
            height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
            # PIL converts CMYK in its own way.
            if colors in SAME_COLORS and height * width <= by_pil.MAX_PIXELS:
                return simplejpeg.decode_jpeg(data, "RGB")
        except ValueError:
            pass  # a damaged file, or one with extra bytes, which PIL may forgive
    return by_pil.decode(data, name, exif_orientation=exif_orientation)
