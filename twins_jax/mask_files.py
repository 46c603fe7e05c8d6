"""Masks as PNG files: class indices, with a palette that shows them."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from twins_jax.errors import InputError
from twins_jax.files import staged

_SOFTWARE = "twins_jax"
"""The text that tells this library's masks from those of others, under PNG's keyword Software."""


def mask_files(folder: Path, images: Sequence[str]) -> dict[str, Path]:
    """Returns the file of each image's mask, a different one for each image.

    Folders below the one that holds all images are kept, and files are named as the images, with ".png". If two images
    of a folder differ in their extensions alone, all masks keep those: "a.jpg.png".

    Args:
        folder: of all masks.
        images: paths.

    Raises:
        InputError: a file exists that this library did not write: it may be a mask that somebody drew.
    """
    absolute = {image: os.path.abspath(image) for image in images}
    top = os.path.commonpath([os.path.dirname(path) for path in absolute.values()])
    names = {path: os.path.relpath(path, top) for path in absolute.values()}
    short = {path: os.path.splitext(name)[0] for path, name in names.items()}
    if len({name.lower() for name in short.values()}) == len(short):  # some systems take both cases for one
        names = short
    files = {image: folder / f"{names[path]}.png" for image, path in absolute.items()}
    for file in files.values():
        _require_own(file)
    return files


def _require_own(file: Path) -> None:
    from PIL import Image

    if not os.path.lexists(file):
        return
    try:
        with Image.open(file, formats=["PNG"]) as image:
            is_own = image.info.get("Software") == _SOFTWARE
    except Exception:  # PIL's readers raise anything from OSError to SyntaxError on a damaged file
        is_own = False
    if not is_own:
        raise InputError(f"{file}: exists and is no mask of twins_jax: remove it, or choose another folder")


def write_mask(file: Path, labels: np.ndarray) -> None:
    """Writes labels as a PNG file, complete or not at all; its folder is made.

    Args:
        file: its path.
        labels: [H, W], uint8, which get the colors of `palette.PALETTE`, or other integers below 2**16.

    Raises:
        InputError: the file cannot be written.
    """
    from PIL import Image, PngImagePlugin

    from twins_jax.segmentation.palette import PALETTE

    is_indexed = labels.dtype == np.uint8
    image = Image.fromarray(labels if is_indexed else labels.astype(np.uint16))
    if is_indexed:
        image.putpalette(PALETTE.tobytes())
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", _SOFTWARE)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{file.parent}: could not be made: {error.strerror}") from error
    with staged(file) as aside:
        image.save(aside, "PNG", pnginfo=text)
