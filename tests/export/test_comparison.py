import numpy as np
import pytest

from twins_jax.export.comparison import Comparison, _compare


def test_what_holds() -> None:
    assert Comparison("logits", 4e-7, 1e-7).bound == 4 * 2.0**-23  # the model exact by luck
    assert Comparison("logits", 4e-6, 1e-6).holds
    assert not Comparison("logits", 4.1e-6, 1e-6).holds
    assert not Comparison("logits", float("nan"), 1e-6).holds
    assert not Comparison("logits", float("inf"), 1e-6).holds


def test_numbers_are_of_the_largest_output() -> None:
    exact = np.random.default_rng(0).standard_normal((3, 10))
    exact[1, 4] = -8.0
    ours = exact + 8e-7
    assert _compare("logits", ours, exact, {1: ours[:1], 3: ours}) == Comparison("logits", 0.0, pytest.approx(1e-7))

    def changed(size: int, value: float) -> float:
        in_file = {1: ours[:1].copy(), 3: ours.copy()}
        in_file[size][-1, 3] += value
        return _compare("logits", ours, exact, in_file).difference

    for size in (1, 3):
        assert changed(size, 0.4) == pytest.approx(0.05)
        assert np.isnan(changed(size, np.nan))
    for shape in ((3, 10), (1, 9), (10,)):
        assert _compare("logits", ours, exact, {1: np.zeros(shape)}).difference == np.inf
    assert _compare("logits", 0 * ours, 0 * exact, {1: 0 * ours[:1]}).holds
