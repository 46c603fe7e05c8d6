"""Data sets of images with masks: an image file and a PNG file of class indices, of one stem."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np

from twins_jax.decode import EXTENSIONS, read_image, read_size
from twins_jax.errors import InputError
from twins_jax.paths import source_path

from ...data.folder import LeftOut, contents, folder_entries
from ...data.packed import PackedPaths
from . import ade20k, folder
from .config import SegmentationDataConfig


class SegmentationRecord(TypedDict):
    """One example as it is stored."""

    image: bytes
    """An encoded image file, of a format that `decode` reads."""

    mask: bytes
    """A PNG file of class indices."""

    name: str
    """The image's file, for error messages."""

    mask_name: str
    """The mask's file, for error messages."""


class SegmentationSource:
    """The images and masks of one split, in the order of the images' names.

    An image is a file with an extension of images, and its mask is STEM.png in the folder of masks. Other entries of
    both folders are left out, masks without an image among them; a warning counts them.

    Args:
        images: folder of the images.
        masks: folder of the masks.
        class_names: by class index.
        require_masks: refuse an image without a mask at once, and not when it is read.

    Raises:
        InputError: a folder is missing, cannot be read or holds no image; two files share a stem; an image has no mask.
    """

    def __init__(self, images: Path, masks: Path, class_names: tuple[str, ...], *, require_masks: bool = True) -> None:
        self.class_names = class_names
        self._image_dir, self._mask_dir = images, masks
        left_out = LeftOut()
        image_of = _by_stem(images, EXTENSIONS, left_out)
        mask_of = _by_stem(masks, (".png",), left_out)
        if not image_of:
            raise InputError(f"{images}: holds no image; extensions are {' '.join(EXTENSIONS)}")
        if require_masks and (missing := sorted(image_of.keys() - mask_of.keys())):
            more = f", nor have {len(missing) - 1} more images" if missing[1:] else ""
            raise InputError(f"{images / image_of[missing[0]]}: has no mask {masks / missing[0]}.png{more}")
        for stem in sorted(mask_of.keys() - image_of.keys()):
            left_out.add(str(masks / mask_of[stem]), f"no image of its name in {images}")
        if left_out.count:
            warnings.warn(f"{images}: entries left out: {left_out.count}, the first {left_out.first}", stacklevel=2)
        stems = sorted(image_of, key=image_of.__getitem__)
        self._images = PackedPaths([os.fsencode(image_of[stem]) for stem in stems])
        self._masks = PackedPaths([os.fsencode(mask_of.get(stem, f"{stem}.png")) for stem in stems])
        self._sizes = np.zeros((len(stems), 2), np.int32)  # 0 until it is asked for

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> SegmentationRecord:
        image, mask = self._image_dir / self._images[index], self._mask_dir / self._masks[index]
        return {"image": read_image(image), "mask": read_image(mask), "name": str(image), "mask_name": str(mask)}

    def size(self, index: int) -> tuple[int, int]:
        """Returns the height and width of an image, in pixels, as its header gives them.

        Raises:
            InputError: the header cannot be read.
        """
        if not self._sizes[index].any():
            self._sizes[index] = read_size(self._image_dir / self._images[index])
        height, width = self._sizes[index].tolist()
        return height, width


def _by_stem(directory: Path, extensions: tuple[str, ...], left_out: LeftOut) -> Mapping[str, str]:
    """Returns the names of the files in a folder with one of the extensions, by stem."""
    if not os.path.isdir(directory):
        raise InputError(f"{directory}: no such folder; {contents(directory.parent)}")
    found: dict[str, str] = {}
    for entry in sorted(folder_entries(directory), key=lambda entry: entry.name):
        stem, extension = os.path.splitext(entry.name)
        if entry.name.startswith("."):
            left_out.add(entry.path, "hidden")
        elif extension.lower() not in extensions:
            left_out.add(entry.path, f"none of {' '.join(extensions)}")
        elif not (entry.is_symlink() or entry.is_file()):
            left_out.add(entry.path, "not a file")
        elif stem in found:
            raise InputError(f"{directory}: holds {found[stem]} and {entry.name}; must hold one file of a stem")
        else:
            found[stem] = entry.name
    return found


def open_source(config: SegmentationDataConfig, split: Literal["train", "eval"]) -> SegmentationSource:
    """Opens one split of a data set that is in place.

    Args:
        config: names the data set.
        split: to open; "eval" is val/ of a folder and validation/ of ADE20K.

    Raises:
        InputError: as `SegmentationSource`, or the file of the classes is not what it must be.
    """
    layout = ade20k if config.source == "ade20k" else folder
    root = source_path("data.dir", config.dir)
    return SegmentationSource(
        root / layout.IMAGES / layout.SPLITS[split],
        root / layout.MASKS / layout.SPLITS[split],
        layout.read_classes(root / layout.CLASSES),
        require_masks=config.on_error == "stop",
    )
