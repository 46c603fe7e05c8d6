"""Masks pasted as PyTorch's grid_sample does, sampled as mmcv's RoIAlign does, written as pycocotools does."""

import jax
import numpy as np
import pytest

from tests.detection.test_roi_align import reference
from twins_jax import InputError
from twins_jax.detection import masks as module
from twins_jax.detection.masks import encode_rle, mask_targets, paste_masks, paste_rle

SIZE = (61, 83)
BOXES = np.array(
    [
        (10, 10, 40, 50),
        (3.3, 7.7, 71.9, 20.2),
        (-20, -10, 30.5, 25),  # beyond the image
        (60, 40, 120, 90),
        (-60, -60, 120, 120),
        (20.5, 20.5, 48.5, 48.5),  # pixels' centers on the edges and on those of the mask's cells
        (30.2, 30.2, 30.9, 30.9),  # within a pixel, with its center
        (30.6, 30.6, 30.9, 30.9),  # without one
        (100, 10, 140, 30),  # outside
        (-40, -40, -5, -5),
    ],
    np.float32,
)


def draw_masks(number: int, size: int = 28) -> np.ndarray:
    """Probabilities of round shapes, with values of 0 and 1 as a sigmoid of large logits has them."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    centers, noise = rng.uniform(0.3, 0.7, (2, number, 1, 1)), rng.uniform(-1, 1, (number, size, size))
    return np.clip(1.5 - 4 * np.hypot(y - centers[0], x - centers[1]) + 0.2 * noise, 0, 1).astype(np.float32)


def test_paste() -> None:
    torch = pytest.importorskip("torch")
    height, width = SIZE
    probabilities = draw_masks(len(BOXES))
    probabilities[5:7] = 1  # one half on the edges
    x1, y1, x2, y2 = torch.from_numpy(BOXES).split(1, dim=1)
    y = (torch.arange(height) + 0.5 - y1) / (y2 - y1) * 2 - 1
    x = (torch.arange(width) + 0.5 - x1) / (x2 - x1) * 2 - 1
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    values = torch.nn.functional.grid_sample(torch.from_numpy(probabilities)[:, None], grid, align_corners=False)
    values = values[:, 0].numpy()
    pasted = paste_masks(probabilities, BOXES, height, width)
    assert pasted.dtype == bool
    # Products round in another order: ties within that may differ, but not those of round numbers.
    is_tie = np.abs(values - 0.5) < 1e-6
    is_tie[5:7] = False
    assert is_tie.sum() < 5
    np.testing.assert_array_equal(pasted | is_tie, (values >= 0.5) | is_tie)
    assert pasted[5, 20:49, 20:49].sum() == pasted[5].sum() == 29**2 - 4  # a quarter at the corners
    assert pasted.sum(axis=(1, 2)).astype(bool).tolist() == [True] * 7 + [False] * 3


def test_boxes_without_area_cover_nothing() -> None:
    boxes = np.float32([(10, 10, 10, 30), (10, 10.5, 30, 10.5), (30, 30, 10, 10), (np.nan, 0, 10, 10)])
    assert not paste_masks(np.ones((4, 28, 28)), boxes, 40, 40).any()
    assert paste_masks(np.ones((0, 28, 28)), np.ones((0, 4)), 40, 30).shape == (0, 40, 30)


def test_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    bitmaps = np.zeros((3, *SIZE), np.uint8)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    bitmaps[0] = np.hypot(y - 30, x - 30) < 17
    bitmaps[1, 10:30, 20:70] = 1
    bitmaps[2, 0::2] = 1  # bins' means are round numbers
    index = np.arange(len(BOXES)) % 3
    height, width = SIZE
    boxes = np.clip(BOXES, 0, [width, height, width, height]).astype(np.float64)
    expected = np.stack(
        [
            reference(torch.from_numpy(bitmaps[g])[..., None].double(), box[None], 28, 1.0)[0]
            for g, box in zip(index, boxes, strict=True)
        ]
    )[..., 0]
    with jax.numpy_rank_promotion("raise"):
        found = jax.jit(mask_targets)(bitmaps, BOXES, index)
    assert found.dtype == np.float32
    is_tie = np.abs(expected - 0.5) < 1e-5
    np.testing.assert_array_equal(np.where(is_tie, 0, found), np.where(is_tie, 0, expected >= 0.5))
    monkeypatch.setattr(module, "TARGET_CHUNK", 4 * height * width)  # 4, 4 and 3 boxes
    boxes = np.concatenate([BOXES, np.float32([(0, 0, 56, 56)])])  # its bins are 2 x 2 pixels
    index = np.append(index, 2)
    images = jax.jit(jax.vmap(mask_targets))(
        np.stack([bitmaps, bitmaps[::-1]]), np.stack([boxes] * 2), np.stack([index, 2 - index])
    )
    np.testing.assert_array_equal(images[:, :-1], np.stack([found, found]))
    assert images[:, -1].all()


def test_run_lengths() -> None:
    coco = pytest.importorskip("pycocotools.mask")
    masks = paste_masks(draw_masks(len(BOXES)), BOXES, *SIZE)
    written = encode_rle(masks)
    assert paste_rle(draw_masks(len(BOXES)), BOXES, *SIZE) == written
    assert [rle["size"] for rle in written] == [[61, 83]] * len(BOXES)
    assert coco.area(written).tolist() == masks.sum(axis=(1, 2)).tolist()
    for rle, mask in zip(written, masks, strict=True):
        np.testing.assert_array_equal(coco.decode(rle), mask)
    corner = np.zeros((1, 3, 4), bool)
    corner[0, 1:, 2:] = True  # columns first: 7 zeros, 2 ones, a zero, 2 ones
    (rle,) = encode_rle(corner)
    assert rle == {"size": [3, 4], "counts": "7210"}


def test_without_pycocotools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twins_jax.extra.find_spec", {}.get)
    message = "writing masks as run lengths needs pycocotools; install twins_jax with its extra `detection`"
    with pytest.raises(InputError, match=f"^{message}$"):
        encode_rle(np.ones((1, 2, 2), bool))
