import collections
import random
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from train.data import augment
from train.data.augment import FILL, OPERATIONS, RandAugment

# Levels: all steps of those that round down, the ends, and some between.
LEVELS = (0.0, 0.05, 1.0, 2.5, 4.99, 5.0, 7.5, 8.3, 8.9, 9.0, 9.4, 9.99, 10.0)


@pytest.fixture(scope="module")
def auto_augment(timm: ModuleType) -> ModuleType:
    return timm.data.auto_augment


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Noise, smooth areas and flat ones; the darkest and the brightest level are missing from one channel."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    values = np.array(image)
    values[: height // 3] = rng.integers(0, 256, (height // 3, width, 3), np.uint8)
    values[height // 2 : height // 2 + 3] = 77
    values[..., 1] = values[..., 1] // 2 + 20
    return values


def test_operations_are_those_of_the_policy(auto_augment: ModuleType) -> None:
    from timm.data import create_transform

    transform = create_transform(224, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic")
    (policy,) = (step for step in transform.transforms if isinstance(step, auto_augment.RandAugment))
    assert [op.name for op in policy.ops] == list(OPERATIONS)
    assert policy.choice_weights is None
    assert policy.num_layers == 2
    for op in policy.ops:
        assert op.kwargs == {"fillcolor": FILL, "resample": Image.Resampling.BICUBIC}
        assert (op.prob, op.magnitude, op.magnitude_std, op.magnitude_max) == (0.5, 9, 0.5, None)


@pytest.mark.parametrize("name", OPERATIONS)
def test_argument_equals_timm(auto_augment: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    level_function = auto_augment.LEVEL_TO_ARG[name]
    if OPERATIONS[name].argument is None:
        assert level_function is None
        return
    for sign in (1, -1):
        monkeypatch.setattr(auto_augment, "_randomly_negate", lambda value: sign * value)  # noqa: B023 - used here
        for level in (*LEVELS, *np.linspace(0, 10, 1001)):
            (expected,) = level_function(float(level), {})
            assert OPERATIONS[name].argument(float(level), sign) == expected


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", [(64, 48), (45, 71)])
def test_pixels_equal_timm(auto_augment: ModuleType, name: str, size: tuple[int, int]) -> None:
    operation = OPERATIONS[name]
    for seed, level in enumerate(LEVELS):
        for sign in (1, -1):
            image = picture(*size, seed)
            before = image.copy()
            arguments = () if operation.argument is None else (operation.argument(level, sign),)
            actual = operation(image, level, sign)
            np.testing.assert_array_equal(image, before)
            assert actual.dtype == np.uint8
            assert actual.flags.c_contiguous
            if name == "PosterizeIncreasing" and arguments == (0,):  # an error in Pillow 13, black before
                assert not actual.any()
                continue
            function = auto_augment.NAME_TO_OP[name]
            expected = function(Image.fromarray(image), *arguments, fillcolor=FILL, resample=Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(actual, np.asarray(expected), err_msg=f"{level} {sign}")


@pytest.mark.parametrize("name", OPERATIONS)
def test_flat_image(auto_augment: ModuleType, name: str) -> None:
    """Nothing to stretch or equalize."""
    image = np.full((6, 7, 3), 200, np.uint8)
    arguments = () if OPERATIONS[name].argument is None else (OPERATIONS[name].argument(9.0, 1),)
    expected = auto_augment.NAME_TO_OP[name](
        Image.fromarray(image), *arguments, fillcolor=FILL, resample=Image.Resampling.BICUBIC
    )
    np.testing.assert_array_equal(OPERATIONS[name](image, 9.0, 1), np.asarray(expected))


def test_law_of_the_policy() -> None:
    draws = 30_000
    rng = np.random.default_rng(0)
    policy = RandAugment(2, 9.0, 0.5)
    drawn = [policy.draw(rng) for _ in range(draws)]
    # Each of the two layers acts half the time.
    lengths = collections.Counter(map(len, drawn))
    assert [lengths[n] / draws for n in range(3)] == pytest.approx([0.25, 0.5, 0.25], abs=0.01)
    # With replacement, all operations alike: 1 / 15 of 30,000 expected, standard deviation 43.
    names, levels, signs = zip(*(step for steps in drawn for step in steps), strict=True)
    counts = collections.Counter(names)
    assert set(counts) == set(OPERATIONS)
    assert max(abs(count - 2000) for count in counts.values()) < 200
    pairs = [steps[0][0] == steps[1][0] for steps in drawn if len(steps) == 2]
    assert np.mean(pairs) == pytest.approx(1 / 15, abs=0.01)
    assert np.mean(signs) == pytest.approx(0, abs=0.02)
    assert set(signs) == {1, -1}
    # Normal, with values beyond 10 moved to 10: two standard deviations, 2.28 %.
    assert max(levels) == 10
    assert np.mean(np.asarray(levels) == 10) == pytest.approx(0.0228, abs=0.004)
    assert np.median(levels) == pytest.approx(9, abs=0.02)
    assert np.quantile(levels, [0.16, 0.84]) == pytest.approx([8.5, 9.5], abs=0.03)


def test_law_of_timm(auto_augment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same statistics of timm's own policy: the law above is not just ours."""
    seen: list[tuple[str, Any]] = []
    for name in OPERATIONS:
        level = auto_augment.LEVEL_TO_ARG[name]
        monkeypatch.setitem(auto_augment.NAME_TO_OP, name, lambda *_, name=name, **__: seen.append(name))
        if level is not None:
            monkeypatch.setitem(auto_augment.LEVEL_TO_ARG, name, lambda level, _: (seen.append(level),))
    policy = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", {})
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - timm draws from it
    for _ in range(20_000):
        policy(None)
    names = [item for item in seen if isinstance(item, str)]
    levels = [item for item in seen if not isinstance(item, str)]
    assert len(names) == pytest.approx(20_000, abs=300)
    assert max(abs(count - 20_000 / 15) for count in collections.Counter(names).values()) < 160
    assert max(levels) == 10
    assert np.mean(np.asarray(levels) == 10) == pytest.approx(0.0228, abs=0.005)
    assert np.quantile(levels, [0.16, 0.5, 0.84]) == pytest.approx([8.5, 9.0, 9.5], abs=0.03)


@pytest.mark.parametrize(("magnitude", "std", "low", "high"), [(0.2, 0.5, 0.0, 2.5), (5.0, 0.0, 5.0, 5.0)])
def test_other_settings(magnitude: float, std: float, low: float, high: float) -> None:
    rng = np.random.default_rng(1)
    drawn = [RandAugment(5, magnitude, std).draw(rng) for _ in range(500)]
    assert max(map(len, drawn)) == 5
    levels = [level for steps in drawn for _, level, _ in steps]
    assert min(levels) == low
    assert max(levels) <= high


def test_the_drawn_operations_are_applied_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = RandAugment(2, 9.0, 0.5)
    image = picture(30, 40, 0)
    element = {"image": image, "label": 3, "name": "x"}
    monkeypatch.setattr(RandAugment, "draw", lambda *_: [("ShearX", 8.0, -1), ("Invert", 9.0, 1)])
    out = policy.random_map(element, np.random.default_rng(0))
    np.testing.assert_array_equal(out["image"], ~augment.shear_x(image, -0.24))
    assert (out["label"], out["name"]) == (3, "x")


def test_generator_decides() -> None:
    policy = RandAugment(2, 9.0, 0.5)
    images = [
        [policy.random_map({"image": picture(20, 20, 1)}, rng)["image"] for _ in range(30)]
        for rng in (np.random.default_rng(seed) for seed in (5, 5, 6))
    ]
    np.testing.assert_array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])
