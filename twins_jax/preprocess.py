"""Images as Twins models expect them."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

import jax
import jax.numpy as jnp
import numpy as np

from twins_jax.config import MIN_IMAGE_SIZE
from twins_jax.errors import InputError, is_integer, is_number, one_line, require
from twins_jax.inputs import as_array
from twins_jax.paths import source_path

if TYPE_CHECKING:
    from PIL import Image

Picture: TypeAlias = Union[str, os.PathLike[str], bytes, np.ndarray, "Image.Image"]
"""An image as `preprocess` takes it: a path, the bytes of a file, uint8 [H, W, 3] or [H, W] of 0 to 255, or PIL's."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

IMAGENET_MEAN = np.array(_MEAN, np.float32)
"""Mean of ImageNet-1K's red, green and blue in [0, 1]; all published weights were trained with it."""

IMAGENET_STD = np.array(_STD, np.float32)
"""Standard deviation of the same."""


def normalize(
    images: jax.Array | np.ndarray,
    mean: Sequence[float] | np.ndarray = _MEAN,
    std: Sequence[float] | np.ndarray = _STD,
) -> jax.Array:
    """Makes images of mean 0 and standard deviation 1 over ImageNet, or another data set.

    Training calls it on the device: a quarter of the bytes crosses to it.

    Args:
        images: uint8 [..., H, W, 3], RGB. Integers of another dtype must be known values from 0 to 255. What is no
            array of JAX is converted, as `as_array` does.
        mean: of red, green and blue in [0, 1].
        std: standard deviation of the same.

    Returns:
        float32 [..., H, W, 3].

    Raises:
        InputError: (a ValueError) naming what is wrong with the images.
    """
    images = as_array("images", images)
    shape, dtype = images.shape, images.dtype
    channels_first = len(shape) > 2 and shape[-3] == 3
    allowed = f"[..., H, W, 3]{', channels last: jnp.moveaxis(images, -3, -1)' if channels_first else ''}"
    require("images.shape", shape, len(shape) > 2 and shape[-1] == 3, allowed)
    if jnp.issubdtype(dtype, jnp.integer) and dtype != jnp.uint8 and not isinstance(images, jax.core.Tracer):
        low, high = int(images.min(initial=0)), int(images.max(initial=0))
        require("images", f"{low} to {high}", low >= 0 and high <= 255, "from 0 to 255")
        images = images.astype(jnp.uint8)
    require("images.dtype", str(dtype), images.dtype == jnp.uint8, "uint8, of values from 0 to 255")
    ones = (1,) * (len(shape) - 1)
    mean, std = (np.asarray(channels, np.float32).reshape((*ones, 3)) for channels in (mean, std))
    return (images.astype(jnp.float32) / 255.0 - mean) / std


def zero_padding(images: jax.Array, sizes: jax.Array) -> jax.Array:
    """Sets normalized images to 0 beyond their own sizes: dense models expect that of the padding.

    Args:
        images: [B, H, W, C].
        sizes: int32 [B, 2], height and width of each image.

    Returns:
        [B, H, W, C] in the dtype of the images.
    """
    rows, columns = (jnp.arange(length, dtype=jnp.int32) for length in images.shape[1:3])
    inside = (rows[None, :, None] < sizes[:, 0, None, None]) & (columns[None, None] < sizes[:, 1, None, None])
    return jnp.where(inside[..., None], images, jnp.zeros((), images.dtype))


INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
"""Pillow's filters, by its names for them."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The way from an image file to the input with which a model was evaluated.

    The shorter side is resized to `image_size / crop`, rounded down, the central square of `image_size` is cut out, and
    its channels, scaled to [0, 1], get `mean` subtracted and are divided by `std`.

    Attributes:
        image_size: height and width of the model's input, in pixels.
        crop: side of the center crop / shorter side of the resized image.
        mean: of each channel.
        std: of each channel.
        interpolation: of the resizing, one of `INTERPOLATIONS`.

    Raises:
        InputError: (a ValueError) naming the field, its value and what it must be.
    """

    image_size: int = 224
    crop: float = 0.875
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        size, crop, mean, std = self.image_size, self.crop, self.mean, self.std
        require("image_size", size, is_integer(size, MIN_IMAGE_SIZE), f"an integer from {MIN_IMAGE_SIZE}")
        require("crop", crop, is_number(crop) and 0 < crop <= 1, "a fraction in (0, 1]")
        for field, values in check_mean_and_std(mean, std).items():
            object.__setattr__(self, field, values)
        allowed = f"one of {', '.join(INTERPOLATIONS)}"
        require("interpolation", self.interpolation, self.interpolation in INTERPOLATIONS, allowed)


def check_mean_and_std(mean: Sequence[float], std: Sequence[float]) -> dict[str, tuple[float, ...]]:
    """Returns "mean" and "std" as tuples of Python's floats.

    Raises:
        InputError: (a ValueError) one of them is no sequence of finite numbers, `std` is not positive, or they are of
            different lengths.
    """
    for field, values, positive in (("mean", mean, False), ("std", std, True)):
        are_numbers = (
            isinstance(values, tuple | list)
            and len(values) > 0
            and all(is_number(value) and math.isfinite(value) for value in values)
        )
        is_right = are_numbers and not (positive and min(values) <= 0)
        require(field, values, is_right, f"a {'positive ' * positive}number for each channel")
    require("std", std, len(std) == len(mean), f"as long as mean, {len(mean)}")
    return {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}


DEFAULT = Preprocessing()
"""Of weights that come without: the evaluation of the paper (resize to 256, crop 224)."""

MAX_RESIZED = 2**26
"""Pixels of a resized image of which `center_crop` computes more than the crop: 200 MB."""

Resize: TypeAlias = Callable[[np.ndarray, tuple[int, int], tuple[int, int], tuple[int, int]], np.ndarray]
"""(image [H, W, 3], full size, top and left of a window, its size) -> the window of the resized image."""


def preprocess(
    picture: Picture, preprocessing: Preprocessing | None = None, *, exif_orientation: bool = True
) -> jax.Array:
    """Makes an image the input of a model, as in the model's evaluation.

    Args:
        picture: path, bytes, uint8 array or PIL image; see `decode.FORMATS`. Gray, palette, CMYK and 16-bit samples
            become RGB, and transparency is dropped; see `decode.decode`.
        preprocessing: of the model, `model.preprocessing`; None: `DEFAULT`, that of the published weights.
        exif_orientation: turn the image as its EXIF data says, as viewers show it. Evaluation in training does not,
            like torchvision's.

    Returns:
        float32 [1, S, S, 3], normalized, S = `preprocessing.image_size`.

    Raises:
        InputError: (a ValueError) the image cannot be read, or an argument is not what it must be.
    """
    preprocessing = DEFAULT if preprocessing is None else preprocessing
    is_ours = isinstance(preprocessing, Preprocessing)
    require("preprocessing", preprocessing, is_ours, "None or a Preprocessing, such as model.preprocessing")
    require("exif_orientation", exif_orientation, isinstance(exif_orientation, bool), "True or False")
    cropped = center_crop(read(picture, exif_orientation=exif_orientation), preprocessing)
    channels = len(preprocessing.mean)
    require("preprocessing.mean", preprocessing.mean, channels == 3, "of 3 channels: images are read as RGB")
    return normalize(cropped[None], preprocessing.mean, preprocessing.std)


def check_pictures(pictures: object) -> None:
    """Raises InputError unless these are several pictures, as a list, another iterable or an array [B, H, W, 3]."""
    is_one = isinstance(pictures, str | bytes | os.PathLike) or getattr(pictures, "ndim", 4) < 4
    is_many = isinstance(pictures, Iterable) and not is_one
    require("pictures", type(pictures), is_many, "a list of images; of a single one, [picture]")


def read(picture: Picture, *, exif_orientation: bool = True) -> np.ndarray:
    """Returns the pixels of an image, uint8 [H, W, 3], RGB; arguments and errors are those of `preprocess`."""
    from PIL import Image  # late: `import twins_jax` does not wait for it

    from twins_jax import decode

    if isinstance(picture, str | os.PathLike):
        return read_file(source_path("picture", picture), exif_orientation=exif_orientation)
    if isinstance(picture, bytes):
        return decode.decode(picture, "picture", exif_orientation=exif_orientation)
    if isinstance(picture, Image.Image):
        try:
            return decode.pixels(picture, exif_orientation=exif_orientation)
        except Exception as error:  # PIL opens files without a look at what follows their headers
            raise InputError(f"picture: not a readable image: {one_line(error)}") from error
    allowed = "a path, bytes, a PIL image, or an array uint8 [H, W, 3] or [H, W]"
    require("picture", type(picture), isinstance(picture, np.ndarray | jax.Array), allowed)
    array = np.asarray(picture)
    described = f"{array.dtype}{list(array.shape)}"
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    require("picture", described, array.dtype == np.uint8 and is_image and array.size > 0, allowed)
    return np.repeat(array[:, :, None], 3, axis=2) if array.ndim == 2 else array


def read_file(path: Path, *, exif_orientation: bool = True) -> np.ndarray:
    """Returns the pixels of an image file of any name, uint8 [H, W, 3], RGB, with the errors of `read`.

    `read` takes what a user wrote, where "~" means the home folder; this takes what a folder lists.
    """
    from twins_jax import decode  # late: `import twins_jax` does not wait for PIL

    return decode.decode(decode.read_image(path), str(path), exif_orientation=exif_orientation)


def center_crop(image: np.ndarray, preprocessing: Preprocessing, resize: Resize | None = None) -> np.ndarray:
    """Resizes the shorter side, keeping the aspect ratio, and cuts out the central square.

    The pixels are those of torchvision.transforms.Resize and CenterCrop on a PIL image, with antialiasing.

    Args:
        image: uint8 [H, W, 3].
        preprocessing: the sizes and the interpolation.
        resize: the resizer, which must give PIL's pixels; PIL's own if None.

    Returns:
        uint8 [S, S, 3], S = `preprocessing.image_size`.
    """
    height, width = image.shape[:2]
    side = preprocessing.image_size
    shorter = math.floor(side / preprocessing.crop)  # timm.data.transforms_factory.transforms_imagenet_eval does so
    longer = int(shorter * max(width, height) / min(width, height))
    full_size = (longer, shorter) if width <= height else (shorter, longer)
    # Halves go to the even neighbor, as in torchvision.
    window = round((full_size[0] - side) / 2), round((full_size[1] - side) / 2)
    if resize:
        return resize(image, full_size, window, (side, side))
    from PIL import Image

    source, resampling = Image.fromarray(image), Image.Resampling[preprocessing.interpolation.upper()]
    if longer * shorter <= MAX_RESIZED:
        resized = np.asarray(source.resize(full_size[::-1], resampling))
        return resized[window[0] : window[0] + side, window[1] : window[1] + side]
    # Of an image that is hardly more than a line PIL resizes the window alone, whose corners it rounds to float32.
    ratio = min(height, width) / shorter
    top, left = window[0] * ratio, window[1] * ratio
    box = (left, top, min(left + side * ratio, width), min(top + side * ratio, height))
    return np.asarray(source.resize((side, side), resampling, box))
