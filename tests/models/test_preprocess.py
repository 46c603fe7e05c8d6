"""One image as a model's input, against timm's transform, NumPy and PIL."""

import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.support.images import of_all_kinds, picture, saved
from tests.support.paths import SHARED_DATA
from twins_jax import InputError, Preprocessing, preprocess
from twins_jax.preprocess import INTERPOLATIONS, MAX_RESIZED, center_crop, read

PHOTOGRAPHS = SHARED_DATA / "imagenet-sample"


def timm_pixels(timm: ModuleType, image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """timm's evaluation without its normalization, uint8 [S, S, 3]."""
    transform = timm.data.create_transform(
        preprocessing.image_size,
        is_training=False,
        crop_pct=preprocessing.crop,
        interpolation=preprocessing.interpolation,
        normalize=False,
    )
    return transform(image).numpy().transpose(1, 2, 0)


def pixels(inputs: Any, preprocessing: Preprocessing) -> np.ndarray:
    """Undoes the normalization of what `preprocess` returns."""
    values = (np.float64(inputs[0]) * preprocessing.std + preprocessing.mean) * 255
    assert np.abs(values - values.round()).max() < 1e-3
    return values.round().astype(np.uint8)


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason="needs shared/data/imagenet-sample beside the project")
def test_photographs_equal_timm_pixel_for_pixel(timm: ModuleType) -> None:
    files = sorted(PHOTOGRAPHS.glob("*/*"))[:60]
    assert len(files) == 60
    for file in files:
        with Image.open(file) as image:
            rgb = image.convert("RGB")
        ours = read(file, exif_orientation=False)
        for crop in (0.875, 0.9):
            preprocessing = Preprocessing(crop=crop)
            np.testing.assert_array_equal(
                center_crop(ours, preprocessing), timm_pixels(timm, rgb, preprocessing), err_msg=str(file)
            )


@pytest.mark.parametrize("size", [(224, 224), (225, 256), (97, 500), (31, 17), (1, 1), (2, 300), (260, 3)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
def test_sizes_and_interpolations_equal_timm(timm: ModuleType, size: tuple[int, int], interpolation: str) -> None:
    image = picture(*size)
    for preprocessing in (
        Preprocessing(224, 0.9, interpolation=interpolation),
        Preprocessing(33, 1, interpolation="box"),
    ):
        np.testing.assert_array_equal(
            pixels(preprocess(image, preprocessing), preprocessing), timm_pixels(timm, image, preprocessing)
        )


def test_normalized_as_timm(timm: ModuleType) -> None:
    image, preprocessing = picture(80, 50), Preprocessing(64, 0.9, (0.5, 0.4, 0.3), (0.2, 0.3, 0.5))
    transform = timm.data.create_transform(
        64, is_training=False, crop_pct=0.9, interpolation="bicubic", mean=preprocessing.mean, std=preprocessing.std
    )
    ours = preprocess(image, preprocessing)
    assert (ours.shape, ours.dtype) == ((1, 64, 64, 3), jnp.float32)
    np.testing.assert_allclose(ours[0], transform(image).numpy().transpose(1, 2, 0), rtol=0, atol=1e-6)


def test_forms_of_one_image(tmp_path: Path) -> None:
    image = picture(50, 40)
    (tmp_path / "~picture").write_bytes(saved(image, "PNG"))
    array = np.asarray(image)
    expected = preprocess(image)
    for same in (tmp_path / "~picture", str(tmp_path / "~picture"), saved(image, "PNG"), array, jnp.asarray(array)):
        np.testing.assert_array_equal(preprocess(same), expected)
    np.testing.assert_array_equal(preprocess(array[::-1, ::-1]), preprocess(array[::-1, ::-1].copy()))
    np.testing.assert_array_equal(preprocess(array[:, :, 1]), preprocess(Image.fromarray(array[:, :, 1])))
    assert np.asarray(image).tobytes() == array.tobytes()


# How RGB comes out of a picture in each of PIL's modes, by NumPy from the samples.
MODES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "1": lambda samples: np.repeat(samples[..., None] * np.uint8(255), 3, 2),
    "L": lambda samples: np.repeat(samples[..., None], 3, 2),
    "LA": lambda samples: np.repeat(samples[..., :1], 3, 2),
    "RGB": lambda samples: samples,
    "RGBA": lambda samples: samples[..., :3],
    "CMYK": lambda samples: np.round((255 - samples[..., :3].astype(int)) * (255 - samples[..., 3:].astype(int)) / 255),
    "I;16": lambda samples: np.repeat((samples // 256)[..., None], 3, 2),
}


@pytest.mark.parametrize("mode", [*MODES, "P", "PA"])
def test_modes_of_pil(mode: str) -> None:
    rng = np.random.default_rng(0)
    if mode in ("P", "PA"):
        image = picture(40, 30).quantize(17).convert(mode)
        palette, places = np.reshape(image.getpalette("RGB"), (-1, 3)), np.asarray(image.getchannel(0))
        expected = palette[places]
    elif mode == "1":
        samples = rng.integers(2, size=(30, 40)).astype(bool)
        image, expected = Image.fromarray(samples), MODES[mode](samples)
    elif mode == "I;16":
        samples = rng.integers(2**16, size=(30, 40)).astype(np.uint16)
        image, expected = Image.fromarray(samples), MODES[mode](samples)
    else:
        samples = rng.integers(256, size=(30, 40, len(Image.new(mode, (1, 1)).getbands()))).astype(np.uint8).squeeze()
        image, expected = Image.frombytes(mode, (40, 30), samples.tobytes()), MODES[mode](samples)
    assert image.mode == mode
    np.testing.assert_array_equal(read(image), expected)
    np.testing.assert_array_equal(preprocess(image), preprocess(expected.astype(np.uint8)))


def test_files_of_all_kinds_have_the_pixels_that_pil_shows() -> None:
    """All but those whose samples PIL clips, and those that are refused."""
    for name, data in of_all_kinds().items():
        if name not in ("TIFF 16", "PNG 16", "PGM 16", "TIFF LAB", "TIFF float", "JPEG EXIF"):
            with Image.open(io.BytesIO(data)) as image:
                np.testing.assert_array_equal(read(data), np.asarray(image.convert("RGB")), err_msg=name)


# EXIF 2.32, table 4, tag 274: the turn that shows an image upright.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda image: image,
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image, 2).swapaxes(0, 1),
    8: np.rot90,
    9: lambda image: image,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation(orientation: int, file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(picture(40, 30), file_format, exif=exif)
    stored = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    expected = UPRIGHT[orientation](stored)
    for turned in (data, Image.open(io.BytesIO(data))):
        np.testing.assert_array_equal(read(turned), expected)
        np.testing.assert_array_equal(preprocess(turned), preprocess(expected))
        np.testing.assert_array_equal(read(turned, exif_orientation=False), stored)
    np.testing.assert_array_equal(preprocess(data, exif_orientation=False), preprocess(stored))


@pytest.mark.parametrize("turned", [False, True])
def test_a_line_that_would_fill_the_memory(turned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resized to 256 pixels its shorter side takes its longer one to 2.6 million; only the window is computed."""
    resize = Image.Image.resize

    def resize_window(image: Image.Image, size: tuple[int, int], *options: Any) -> Image.Image:
        assert size == (224, 224)
        return resize(image, size, *options)

    monkeypatch.setattr(Image.Image, "resize", resize_window)
    line = np.random.default_rng(0).integers(256, size=(1, 10_000, 3)).astype(np.uint8)
    assert MAX_RESIZED < 256 * 256 * 10_000
    preprocessing = Preprocessing(interpolation="bilinear")
    out = center_crop(line.swapaxes(0, 1) if turned else line, preprocessing)
    # The middle of the output, 224 of 2,560,000 pixels, in the source's coordinates of pixel centers.
    places = (1_280_000 - 112 + np.arange(224) + 0.5) / 256 - 0.5
    expected = np.stack([np.interp(places, np.arange(10_000), line[0, :, channel]) for channel in range(3)], 1)
    out = out.swapaxes(0, 1) if turned else out
    assert np.abs(out - expected[None]).max() <= 0.51


REFUSED: dict[str, tuple[Any, str]] = {
    "missing": ("no such.jpg", "no such.jpg: cannot be read: No such file or directory"),
    "folder": (".", ".: cannot be read: Is a directory"),
    "no path": ("", "picture='': must be the path of a file or folder"),
    "a URL": ("https://host/a.jpg", "picture='https://host/a.jpg': must be a path on this machine"),
    "no image": (b"hello", "picture: not a readable image: unknown format, first bytes b'hello'"),
    "truncated": (saved(picture(40, 30), "JPEG")[:500], "picture: not a readable image: "),
    "floats": (np.zeros((40, 30, 3)), "picture='float64[40, 30, 3]': must be a path, bytes, a PIL image, or an array"),
    "wide integers": (np.zeros((40, 30, 3), int), "picture='int64[40, 30, 3]': must be a path, bytes, a PIL image"),
    "channels first": (np.zeros((3, 40, 30), np.uint8), "picture='uint8[3, 40, 30]': must be a path, bytes"),
    "alpha": (np.zeros((40, 30, 4), np.uint8), "picture='uint8[40, 30, 4]': must be a path, bytes"),
    "a batch": (np.zeros((1, 40, 30, 3), np.uint8), "picture='uint8[1, 40, 30, 3]': must be a path, bytes"),
    "empty": (np.zeros((0, 30, 3), np.uint8), "picture='uint8[0, 30, 3]': must be a path, bytes"),
    "a list": ([[0]], "picture=<class 'list'>: must be a path, bytes, a PIL image, or an array"),
    "nothing": (None, "picture=<class 'NoneType'>: must be a path"),
    "PIL, float": (Image.new("F", (4, 4)), "picture: not a readable image: an image with samples of PIL's mode F"),
    "PIL, 32 bits": (Image.new("I", (4, 4)), "picture: not a readable image: an image with samples of PIL's mode I"),
    "PIL, CIELAB": (Image.new("LAB", (4, 4)), "picture: not a readable image: an image with samples of PIL's mode LAB"),
    "PIL, empty": (Image.new("RGB", (0, 4)), "picture: not a readable image: 0 x 4 pixels; 1 to"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given, message = REFUSED[kind]
    with pytest.raises(InputError) as caught:
        preprocess(given)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_damaged_file_that_pil_has_opened() -> None:
    image = Image.open(io.BytesIO(saved(picture(40, 30), "JPEG")[:860]))
    with pytest.raises(InputError, match=r"^picture: not a readable image: "):
        preprocess(image)


def test_the_preprocessing_is_checked() -> None:
    with pytest.raises(InputError, match=r"^preprocessing=\{'image_size': 64\}: must be None or a Preprocessing"):
        preprocess(picture(40, 30), {"image_size": 64})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^preprocessing.mean=\(0.5,\): must be of 3 channels"):
        preprocess(picture(40, 30), Preprocessing(64, mean=(0.5,), std=(0.5,)))
    with pytest.raises(InputError, match=r"^exif_orientation='no': must be True or False"):
        preprocess(picture(40, 30), exif_orientation="no")  # type: ignore[arg-type]


def test_pil_has_every_interpolation() -> None:
    assert set(INTERPOLATIONS) <= {name.lower() for name in Image.Resampling.__members__}
