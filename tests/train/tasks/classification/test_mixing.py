import random
import re
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.tasks.classification import mixing
from train.tasks.classification.mixing import (
    MixConfig,
    blend,
    box_mask,
    cutmix_weights,
    draw_boxes,
    draw_weights,
    following,
    mix,
    random_erase,
)
from twins_jax.errors import InputError

RECIPE = MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0)
CLASSES = 7


@pytest.fixture(scope="module")
def torch(timm: ModuleType) -> ModuleType:  # noqa: ARG001 - where timm is, torch is
    return pytest.importorskip("torch")


def batch(count: int = 6, height: int = 24, width: int = 32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, height, width, 3), np.float32), rng.integers(0, CLASSES, count)


def smoothed(labels: np.ndarray, smoothing: float = 0.1) -> np.ndarray:
    return np.eye(CLASSES, dtype=np.float32)[labels] * (1 - smoothing) + smoothing / CLASSES


def timm_mix(
    torch: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    *,
    cutmix: bool,
    lam: float,
    center: tuple[int, int],
    image_size: tuple[int, int] = (24, 32),
) -> tuple[np.ndarray, np.ndarray]:
    """timm's Mixup of `batch()` with the given draws, of each image with the next one."""
    from timm.data import mixup

    centers = iter(center)
    monkeypatch.setattr(mixup.Mixup, "_params_per_batch", lambda _: (lam, cutmix))
    monkeypatch.setattr(mixup.np.random, "randint", lambda *_, **__: next(centers))
    # timm mixes the first with the last, and so on.
    images, labels = (np.concatenate([x, np.roll(x, -1, 0)[::-1]]) for x in batch(6, *image_size))
    transform = mixup.Mixup(
        mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.5, label_smoothing=0.1, num_classes=CLASSES
    )
    mixed, targets = transform(torch.tensor(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))
    return mixed.permute(0, 2, 3, 1).numpy()[:6], targets.numpy()[:6]


@pytest.mark.parametrize("lam", [0.0, 0.125, 0.37, 0.999])
def test_mixup_equals_timm(torch: ModuleType, monkeypatch: pytest.MonkeyPatch, lam: float) -> None:
    expected_images, expected_targets = timm_mix(torch, monkeypatch, cutmix=False, lam=lam, center=(0, 0))
    images, labels = batch()
    mixed, targets = blend(images, smoothed(labels), jnp.full((24, 32), lam, jnp.float32), jnp.float32(lam))
    np.testing.assert_allclose(mixed, expected_images, atol=1e-6)
    np.testing.assert_allclose(targets, expected_targets, atol=1e-6)


@pytest.mark.parametrize("lam", [0.0, 0.09, 0.25, 0.36, 0.7, 0.9999])
@pytest.mark.parametrize("center", [(0, 0), (12, 16), (23, 31), (3, 30), (22, 2)])
@pytest.mark.parametrize("image_size", [(24, 32), (17, 9)])
def test_cutmix_equals_timm(
    torch: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    lam: float,
    center: tuple[int, int],
    image_size: tuple[int, int],
) -> None:
    center = center[0] % image_size[0], center[1] % image_size[1]
    expected_images, expected_targets = timm_mix(
        torch, monkeypatch, cutmix=True, lam=lam, center=center, image_size=image_size
    )
    images, labels = batch(6, *image_size)
    weights = cutmix_weights(*image_size, jnp.float32(lam), jnp.array(center))
    mixed, targets = blend(images, smoothed(labels), weights, weights.mean())
    np.testing.assert_array_equal(mixed, expected_images)
    np.testing.assert_allclose(targets, expected_targets, atol=1e-6)


@pytest.mark.parametrize(
    ("count", "processes", "repeats"),
    [(8, 1, 1), (2, 1, 1), (5, 1, 1), (16, 1, 3), (7, 1, 3), (6, 1, 3), (12, 2, 3), (24, 4, 3), (8, 4, 1), (12, 3, 2)],
)
def test_no_example_is_mixed_with_itself(count: int, processes: int, repeats: int) -> None:
    """Wherever in the batch the views of an example begin, and each image is one other's."""
    found = np.asarray(following(jnp.arange(count), repeats))
    assert sorted(found) == list(range(count))
    for start in range(repeats):
        views = (np.arange(count) + start) // repeats
        examples = np.concatenate([views[process::processes] for process in range(processes)])  # as they are dealt out
        assert (examples[found] != examples).all()


def test_mix_is_the_blend_with_the_drawn_weights() -> None:
    images, labels = batch()
    draw, jitted = jax.jit(draw_weights, static_argnums=(1, 2, 3)), jax.jit(mix, static_argnums=3)
    for seed in range(8):
        expected = blend(images, smoothed(labels), *draw(jax.random.key(seed), 24, 32, RECIPE))
        actual = jitted(jax.random.key(seed), images, smoothed(labels), RECIPE)
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
        np.testing.assert_allclose(actual[1].sum(1), 1, atol=1e-6)


def drawn(config: MixConfig, count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Returns for many batches the draws of a cut, and the share of each one's own targets."""
    keys = jax.random.split(jax.random.key(0), count)
    weights, share = jax.jit(jax.vmap(lambda key: draw_weights(key, 16, 16, config)))(keys)
    weights = np.asarray(weights)
    cut = weights.min((1, 2)) == 0
    assert np.isin(weights[cut], (0, 1)).all()
    assert (weights[~cut] == weights[~cut][:, :1, :1]).all()
    np.testing.assert_allclose(share, weights.mean((1, 2)), atol=1e-5)
    return cut, np.asarray(share)


def test_law_of_mixup() -> None:
    cut, share = drawn(MixConfig(mixup_alpha=0.8))
    assert not cut.any()
    expected = np.random.default_rng(0).beta(0.8, 0.8, 100_000)
    quantiles = [0.1, 0.25, 0.5, 0.75, 0.9]
    np.testing.assert_allclose(np.quantile(share, quantiles), np.quantile(expected, quantiles), atol=0.03)


def test_law_of_cutmix() -> None:
    """Against timm's law, written down once more: Beta, the box's sides, its center, and its rest within the edges."""
    cut, share = drawn(MixConfig(cutmix_alpha=1.0))
    rng = np.random.default_rng(0)
    expected = []
    for _ in range(20_000):
        side = int(16 * np.sqrt(1 - rng.beta(1, 1)))
        inside = [max(min(c + (side + 1) // 2, 16), 0) - max(c - side // 2, 0) for c in rng.integers(0, 16, 2)]
        expected.append(1 - inside[0] * inside[1] / 256)
    quantiles = [0.1, 0.25, 0.5, 0.75, 0.9]
    np.testing.assert_allclose(np.quantile(share, quantiles), np.quantile(expected, quantiles), atol=0.03)
    assert np.mean(cut) == pytest.approx(1 - np.mean(np.asarray(expected) == 1), abs=0.01)


@pytest.mark.parametrize(("switch", "probability"), [(0.2, 1.0), (0.5, 0.6), (1.0, 1.0)])
def test_switch_and_probability(switch: float, probability: float) -> None:
    config = MixConfig(mixup_alpha=0.8, cutmix_alpha=0.8, switch_probability=switch, probability=probability)
    cut, share = drawn(config)
    empty_boxes = 0.01  # of side 0
    assert np.mean(cut) == pytest.approx(probability * switch, abs=0.03 + empty_boxes)
    assert np.mean(share == 1) == pytest.approx(1 - probability, abs=0.03 + empty_boxes)


def test_nothing_by_default() -> None:
    images, labels = batch()
    assert mix(jax.random.key(0), images, labels, MixConfig()) == (images, labels)
    assert random_erase(jax.random.key(0), images, MixConfig().erase_probability) is images


@pytest.mark.parametrize(("count", "dtype"), [(1, jnp.float32), (5, jnp.bfloat16)])
def test_dtypes_and_odd_batches(count: int, dtype: Any) -> None:
    images = jnp.ones((count, 8, 8, 3), dtype)
    targets = jnp.ones((count, CLASSES)) / CLASSES
    mixed, mixed_targets = mix(jax.random.key(1), images, targets, RECIPE)
    erased = random_erase(jax.random.key(1), images, 1.0)
    assert (mixed.dtype, erased.dtype, mixed_targets.dtype) == (dtype, dtype, jnp.float32)
    assert (mixed.shape, erased.shape) == (images.shape, images.shape)


def test_keys_decide() -> None:
    images, labels = batch()
    for function in (
        lambda key: mix(key, images, smoothed(labels), RECIPE)[0],
        lambda key: random_erase(key, images, 0.8),
    ):
        function = jax.jit(function)
        np.testing.assert_array_equal(function(jax.random.key(3)), function(jax.random.key(3)))
        assert not np.array_equal(function(jax.random.key(3)), function(jax.random.key(4)))


def timm_boxes(torch: ModuleType, monkeypatch: pytest.MonkeyPatch, count: int, height: int, width: int) -> np.ndarray:
    """The boxes that timm erases, as top, left, height and width, found by the pixels it sets to NaN."""
    from timm.data import random_erasing

    monkeypatch.setattr(random_erasing, "_get_pixels", lambda *_, **__: torch.tensor(float("nan")))
    random.seed(0)
    erase = random_erasing.RandomErasing(probability=0.25, mode="pixel", device="cpu")
    masks = erase(torch.zeros(count, 1, height, width))[:, 0].isnan().numpy()
    rows, columns = masks.any(2), masks.any(1)
    return np.stack([rows.argmax(1), columns.argmax(1), rows.sum(1), columns.sum(1)], 1)


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (6, 30)])
def test_law_of_erasing_equals_timm(torch: ModuleType, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    count = 20_000
    expected = timm_boxes(torch, monkeypatch, count, *size)
    boxes = np.asarray(draw_boxes(jax.random.key(0), count, *size, 0.25))
    erased, expected_erased = boxes[:, 2] > 0, expected[:, 2] > 0
    assert erased.mean() == pytest.approx(expected_erased.mean(), abs=0.01)
    boxes, expected = boxes[erased], expected[expected_erased]
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= size).all()
    quantiles = [0.05, 0.25, 0.5, 0.75, 0.95]
    for values, others in zip(laws(boxes, size), laws(expected, size), strict=True):
        np.testing.assert_allclose(np.quantile(values, quantiles), np.quantile(others, quantiles), atol=0.045)


def laws(boxes: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
    """The box's place in its range, its area and the logarithm of its aspect, all of the order of 1."""
    area, aspect = boxes[:, 2] * boxes[:, 3] / (size[0] * size[1]), np.log(boxes[:, 2] / boxes[:, 3])
    room = size - boxes[:, 2:] + 1
    return [boxes[:, 0] / room[:, 0], boxes[:, 1] / room[:, 1], area, aspect / 2]


def test_sides_of_erased_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the area and the aspect fixed, as timm rounds them: 0.1 x 40 x 50 pixels, twice as high as wide."""
    monkeypatch.setattr(mixing, "ERASE_AREA", (0.1, 0.1))
    monkeypatch.setattr(mixing, "ERASE_ASPECT", (2.0, 2.0))
    boxes = np.asarray(draw_boxes(jax.random.key(0), 100, 40, 50, 1.0))
    assert (boxes[:, 2:] == (20, 10)).all()
    assert set(boxes[:, 0]) <= set(range(21))
    # As high as the image: never taken.
    assert not np.asarray(draw_boxes(jax.random.key(0), 100, 10, 80, 1.0)).any()


def test_box_mask() -> None:
    boxes = np.array([[1, 2, 3, 4], [0, 0, 0, 0], [0, 0, 5, 7]])
    mask = np.asarray(box_mask(jnp.asarray(boxes), 5, 7))
    expected = np.zeros((3, 5, 7), bool)
    expected[0, 1:4, 2:6] = True
    expected[2] = True
    np.testing.assert_array_equal(mask, expected)


def test_erased_pixels_are_normal_noise() -> None:
    images = np.full((400, 16, 16, 3), 7.0, np.float32)
    key = jax.random.key(0)
    erased = np.asarray(jax.jit(random_erase, static_argnums=2)(key, images, 0.5))
    mask = (erased != 7).any(3)
    assert (erased[~mask] == 7).all()
    noise = erased[mask]
    assert noise.mean() == pytest.approx(0, abs=0.03)
    assert noise.std() == pytest.approx(1, abs=0.03)
    assert len(np.unique(noise)) > 0.99 * noise.size  # of its own in each pixel and channel
    assert mask.any((1, 2)).mean() == pytest.approx(0.5, abs=0.08)
    for one in mask[mask.any((1, 2))]:
        rows, columns = one.any(1), one.any(0)
        assert one.sum() == rows.sum() * columns.sum()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mixup_alpha", -0.1),
        ("mixup_alpha", float("inf")),
        ("cutmix_alpha", -1.0),
        ("cutmix_alpha", float("nan")),
        ("switch_probability", 1.5),
        ("probability", -0.1),
        ("probability", float("nan")),
        ("erase_probability", 2.0),
    ],
)
def test_field_out_of_range(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^mix\.{field}={re.escape(repr(value))}: must be "):
        MixConfig(**{field: value})
