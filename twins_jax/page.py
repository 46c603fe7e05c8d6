"""Pages that are one HTML file, pictures included."""

import base64
import html
import io
import re
from pathlib import Path

import numpy as np

from twins_jax.errors import InputError

_GENERATOR = '<meta name="generator" content="twins_jax">'

_STYLE = """
:root { color-scheme: light dark; --line: #8883; --bar: #1e6ec8; }
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; }
figure { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; } td, th { padding: .2em .5em; text-align: right; font-weight: normal; }
"""

LARGEST_PNG = 64
"""Side in pixels up to which a thumbnail is stored as it is, and shown with hard edges: digits and icons."""


def document(title: str, style: str, body: str) -> str:
    """Returns a page.

    Args:
        title: plain text.
        style: CSS beside what all pages have.
        body: HTML.
    """
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">{_GENERATOR}
<title>{text(title)}</title>
<style>{_STYLE}{style}</style></head>
<body>
<h1>{text(title)}</h1>
{body}
</body>
</html>
"""


def text(value: str) -> str:
    """Returns plain text as HTML, made `printable`."""
    return html.escape(printable(value))


def printable(value: str) -> str:
    """Returns text as UTF-8 can hold it: bytes of a file's name that are none become replacement characters."""
    return re.sub("[\ud800-\udfff]", "\ufffd", value)


def thumbnail(pixels: np.ndarray, side: int) -> str:
    """Returns an image, uint8 [H, W, 3], as HTML with the picture in it.

    Args:
        pixels: the image.
        side: the largest height and width, in pixels, with which the picture is stored.
    """
    from PIL import Image

    picture, data = Image.fromarray(pixels), io.BytesIO()
    is_small = max(picture.size) <= LARGEST_PNG
    if is_small:
        picture.save(data, "PNG")
    else:
        picture.thumbnail((side, side))
        picture.save(data, "JPEG", quality=85)
    kind, style = ("png", ' style="image-rendering: pixelated"') if is_small else ("jpeg", "")
    return f'<img src="data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}" alt=""{style}>'


def require_own(path: Path) -> None:
    """Raises InputError if a file exists that no page of this library is in: it would be overwritten."""
    if not path.exists():
        return
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            is_own = _GENERATOR in file.read(1000)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if not is_own:
        raise InputError(f"{path}: exists and is no page of twins_jax: remove it, or choose another folder")
