"""Colors of classes, and their mixture with an image."""

import numpy as np

from twins_jax.segmentation.palette import IGNORED, PALETTE, colorize, overlay


def test_colors_are_all_different_and_the_first_most() -> None:
    assert (PALETTE.shape, PALETTE.dtype) == ((256, 3), np.uint8)
    assert len(np.unique(PALETTE, axis=0)) == 256
    assert PALETTE[IGNORED].tolist() == [128] * 3
    distance = np.linalg.norm(PALETTE[:20, None].astype(float) - PALETTE[:20], axis=-1) + 1000 * np.eye(20)
    assert distance.min() > 60  # of 441 from black to white


def test_colorize_and_overlay() -> None:
    labels = np.array([[0, 7], [255, 254]], np.uint8)
    np.testing.assert_array_equal(colorize(labels), [[PALETTE[0], PALETTE[7]], [PALETTE[255], PALETTE[254]]])
    np.testing.assert_array_equal(colorize(np.array([[300, 3]])), [[PALETTE[45], PALETTE[3]]])
    image = np.random.default_rng(0).integers(0, 256, (2, 2, 3), np.uint8)
    expected = 0.75 * image.astype(float) + 0.25 * colorize(labels)
    assert np.abs(overlay(image, labels, 0.25) - expected).max() <= 0.5
    np.testing.assert_array_equal(overlay(image, labels, 0.0), image)
    np.testing.assert_array_equal(overlay(image, labels, 1.0), colorize(labels))
