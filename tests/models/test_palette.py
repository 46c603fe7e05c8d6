"""Colors of classes, and their mixture with an image."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from twins_jax import InputError
from twins_jax.segmentation.palette import IGNORED, PALETTE, colorize, overlay
from twins_jax.visualize import segmentation_overlay


def test_colors_are_all_different_and_the_first_most() -> None:
    assert (PALETTE.shape, PALETTE.dtype) == ((256, 3), np.uint8)
    assert len(np.unique(PALETTE, axis=0)) == 256
    assert PALETTE[IGNORED].tolist() == [128] * 3
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = np.asarray(ImageCms.applyTransform(Image.fromarray(PALETTE[None]), to_lab))[0].astype(float)
    lab[:, 1:] = (lab[:, 1:] + 128) % 256 - 128  # PIL's a and b are of two's complement
    lab[:, 0] *= 100 / 255
    for count, least in ((10, 30), (20, 20), (150, 5)):  # in CIELAB, where a difference of 2.3 is just noticeable
        distance = np.linalg.norm(lab[:count, None] - lab[:count], axis=-1) + 1000 * np.eye(count)
        assert distance.min() > least


def test_colorize_and_overlay() -> None:
    labels = np.array([[0, 7], [255, 254]], np.uint8)
    np.testing.assert_array_equal(colorize(labels), [[PALETTE[0], PALETTE[7]], [PALETTE[255], PALETTE[254]]])
    np.testing.assert_array_equal(colorize(np.array([[300, 3]])), [[PALETTE[45], PALETTE[3]]])
    image = np.random.default_rng(0).integers(0, 256, (2, 2, 3), np.uint8)
    expected = 0.75 * image.astype(float) + 0.25 * colorize(labels)
    assert np.abs(overlay(image, labels, 0.25) - expected).max() <= 0.5
    np.testing.assert_array_equal(overlay(image, labels, 0.0), image)
    np.testing.assert_array_equal(overlay(image, labels, 1.0), colorize(labels))


def test_overlay_of_labels_of_another_size() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    labels = np.array([[0, 1, 2], [3, 4, 255]], np.uint8)
    found = np.asarray(segmentation_overlay(image, labels, opacity=0.5))
    np.testing.assert_array_equal(found, overlay(image, np.kron(labels, np.ones((2, 2), np.uint8)), 0.5))
    for wrong in (labels[None], labels / 1.0, labels.astype(int) - 1, labels[:0]):
        with pytest.raises(InputError, match=r"labels='.*': must be integers \[H, W\] from 0"):
            segmentation_overlay(image, wrong)
    with pytest.raises(InputError, match=r"opacity=2: must be a number from 0 to 1"):
        segmentation_overlay(image, labels, opacity=2)
