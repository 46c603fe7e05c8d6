"""Objects drawn over an image, pixel by pixel."""

import itertools
from typing import Any

import numpy as np
import pytest
from PIL import ImageDraw

from twins_jax import InputError
from twins_jax.segmentation.palette import PALETTE
from twins_jax.visualize import detection_overlay

GRAY = np.full((120, 200, 3), 90, np.uint8)


def outline(pixels: np.ndarray, rectangle: tuple[int, int, int, int], color: np.ndarray) -> None:
    left, top, right, bottom = rectangle
    pixels[[top, bottom - 1], left:right] = color
    pixels[top:bottom, [left, right - 1]] = color


def test_boxes_are_the_pixels_that_they_touch() -> None:
    """A box that reaches beyond the image, one outside of it, one that is a line, and boxes in the order of scores."""
    boxes = [[10.2, 20, 30, 40.9], [-5, 100, 12, 300], [300, 10, 400, 20], [60, 60, 60, 80], [12, 18, 28, 38]]
    expected = GRAY.copy()
    outline(expected, (0, 100, 12, 120), PALETTE[1])
    outline(expected, (10, 20, 30, 41), PALETTE[0])
    outline(expected, (12, 18, 28, 38), PALETTE[3])
    by_score = detection_overlay(GRAY, boxes, [0, 1, 2, 0, 3], scores=[0.1, 0.2, 0.3, 0.4, 0.5])
    is_caption = (np.asarray(by_score) != expected).any(axis=-1)
    assert not is_caption[20:38, 12:28].any()
    outline(expected, (10, 20, 30, 41), PALETTE[0])  # without scores the first is on top
    np.testing.assert_array_equal(detection_overlay(GRAY, boxes, [0, 1, 2, 0, 3]), expected)
    assert detection_overlay(GRAY, [], []).tobytes() == GRAY.tobytes()
    assert detection_overlay(GRAY, np.zeros((0, 4)), np.zeros(0, int), scores=[], class_names=["a"]).size == (200, 120)
    large = detection_overlay(np.tile(GRAY[:40, :40], (40, 40, 1)), [[0, 0, 1600, 1600]], [0])
    assert [large.getpixel((4, 9)), large.getpixel((5, 9))] == [tuple(PALETTE[0]), (90, 90, 90)]


def test_masks_are_tinted_and_outlined() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    masks = np.zeros((3, 40, 60), bool)
    masks[0, 10:20, 30:50] = True
    masks[1, 0:5, 0:7] = True  # at a corner of the image; the third is empty
    found = np.asarray(detection_overlay(image, [[0, 38, 1, 40]] * 3, [4, 5, 6], masks=masks))
    for label, (left, top, right, bottom) in ((4, (30, 10, 50, 20)), (5, (0, 0, 7, 5))):
        expected = image[top:bottom, left:right] * 0.6 + PALETTE[label] * 0.4
        outline(expected, (0, 0, right - left, bottom - top), PALETTE[label])
        assert np.abs(found[top:bottom, left:right] - expected).max() <= 0.51
    untouched = ~masks.any(axis=0)
    untouched[38:, 0] = False
    np.testing.assert_array_equal(found[untouched], image[untouched])


def test_captions_cover_no_other_caption_and_little_of_other_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    captions: list[tuple[int, int, int, int]] = []
    draw_rectangle = ImageDraw.ImageDraw.rectangle

    def note(self: ImageDraw.ImageDraw, corners: tuple[int, int, int, int], **options: Any) -> None:
        if "fill" in options:
            captions.append((corners[0], corners[1], corners[2] + 1, corners[3] + 1))
        draw_rectangle(self, corners, **options)

    def common(a: Any, b: Any) -> float:
        sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        return float(np.maximum(sides, 0).prod())

    monkeypatch.setattr(ImageDraw.ImageDraw, "rectangle", note)
    rng = np.random.default_rng(0)
    corners = rng.integers((0, 0), (180, 110), (25, 2))
    boxes = np.minimum(np.concatenate([corners, corners + rng.integers(5, 40, (25, 2))], axis=1), [200, 120] * 2)
    detection_overlay(GRAY, boxes, [0] * 25, scores=np.linspace(0.3, 1, 25), class_names=["it"])
    assert 5 < len(captions) < 25
    for a, b in itertools.combinations(captions, 2):
        assert common(a, b) == 0
    for caption in captions:
        left, top, right, bottom = caption
        assert min(left, top, 200 - right, 120 - bottom) >= 0
        covered = [common(caption, box) / common(box, box) for box in boxes]
        assert sum(share > 0.1 for share in covered) <= 1  # its own
    captions.clear()
    detection_overlay(GRAY, [[20, 40, 180, 100]] * 5, [0] * 5, class_names=["same"])
    assert [caption[1] for caption in captions] == sorted({caption[1] for caption in captions})  # above, in, below
    assert len(captions) == 3
    captions.clear()
    detection_overlay(GRAY, boxes, [0] * 25)
    assert captions == []


def test_odd_names_and_huge_images() -> None:
    for name in ("a\nb\x1b[31m", "Käse 細胞", "x" * 1000, "", "\udce9"):
        detection_overlay(GRAY, [[0, 0, 10, 10]], [0], scores=[1.0], class_names=[name])
    labels = np.array([255], np.uint8)
    assert detection_overlay(GRAY, [[0, 0, 9, 9]], labels, class_names=["n"] * 256).getpixel((8, 8)) == tuple(
        PALETTE[0]
    )
    detection_overlay(GRAY[:1, :1], [[0, 0, 1, 1]], [254], class_names=["n"] * 255)
    assert detection_overlay(GRAY[:, :, 0], [[0, 0, 9, 9]], np.array([300])).getpixel((0, 0)) == tuple(PALETTE[45])


def test_refused() -> None:
    box, masks = [[1, 2, 3, 4]], np.zeros((1, 120, 200), bool)
    arguments: dict[str, Any]
    for boxes, labels, arguments, message in (
        ([1, 2, 3, 4], [0], {}, r"boxes='float64\[4\]': must be \[N, 4\]"),
        ([[1, 2, 3]], [0], {}, r"boxes='float64\[1, 3\]': must be"),
        ([[1, 2, 0, 4]], [0], {}, "boxes=.*x1 <= x2"),
        ([[1, np.nan, 3, 4]], [0], {}, "boxes=.*finite"),
        (box, [0, 1], {}, r"labels='int64\[2\]': must be integers \[1\] from 0"),
        (box, [-1], {}, "labels="),
        (box, [0.0], {}, r"labels='float64\[1\]'"),
        (box, [0], {"scores": [1.5]}, r"scores='float64\[1\]': must be \[1\] from 0 to 1"),
        (box, [0], {"scores": [np.nan]}, "scores="),
        (box, [0], {"scores": 0.5}, r"scores='float64\[\]'"),
        (box, [0], {"masks": masks[:, 1:]}, r"masks='bool\[1, 119, 200\]': must be bool \[1, 120, 200\]"),
        (box, [0], {"masks": masks.astype(int)}, r"masks='int64"),
        (box, [1], {"class_names": ["a"]}, r"class_names=\['a'\]: must be None or 2 strings or more"),
        (box, [0], {"class_names": "abc"}, "class_names='abc'"),
    ):
        with pytest.raises(InputError, match=message):
            detection_overlay(GRAY, boxes, labels, **arguments)
