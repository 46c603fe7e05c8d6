"""LSA's windows and padding against a slow computation of one window at a time, and what LSA and GSA can see."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.helpers import float64_mode, random_array, random_module, relative_error
from twins_jax.attention import (
    GlobalSubSampledAttention,
    LocallyGroupedAttention,
    join_windows,
    padding_bias,
    split_windows,
)
from twins_jax.config import WindowPadding, variant_config

DIM, HEADS = 8, 2
CONFIG = variant_config("twins_svt_tiny")
sides = st.integers(1, 20)
window_sizes = st.integers(2, 8)


def lsa(window_size: int, window_padding: WindowPadding = "zero", dtype: type = np.float32) -> LocallyGroupedAttention:
    config = dataclasses.replace(CONFIG, window_padding=window_padding, dtype=dtype, param_dtype=dtype)
    return random_module(lambda: LocallyGroupedAttention(DIM, HEADS, window_size, config=config, rngs=nnx.Rngs(0)))


def gsa(ratio: int) -> GlobalSubSampledAttention:
    return random_module(lambda: GlobalSubSampledAttention(DIM, HEADS, ratio, config=CONFIG, rngs=nnx.Rngs(0)))


@given(batch=st.integers(1, 3), rows=st.integers(1, 4), columns=st.integers(1, 4), size=window_sizes)
def test_join_windows_inverts_split_windows(batch: int, rows: int, columns: int, size: int) -> None:
    height, width = rows * size, columns * size
    x = np.arange(batch * height * width * 2).reshape(batch, height, width, 2)
    windows = split_windows(x, size)
    assert windows.shape == (batch, rows * columns, size * size, 2)
    np.testing.assert_array_equal(windows[0, -1, 0], x[0, height - size, width - size])
    np.testing.assert_array_equal(join_windows(windows, size, height, width), x)


def test_windows_and_their_positions_are_in_row_major_order() -> None:
    x = np.arange(4 * 6).reshape(1, 4, 6, 1)
    windows = split_windows(x, 2)[0, :, :, 0]
    np.testing.assert_array_equal(
        windows, [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11], [12, 13, 18, 19], [14, 15, 20, 21], [16, 17, 22, 23]]
    )


def slow_lsa(layer: LocallyGroupedAttention, x: np.ndarray) -> np.ndarray:
    """LSA of one map [H, W, C], written position by position."""
    kernel, bias = np.asarray(layer.qkv.kernel[...]), np.asarray(layer.qkv.bias[...])
    height, width, dim = x.shape
    size, head_dim = layer.window_size, dim // HEADS
    one_sided = height % size == 0 or width % size == 0
    attended = np.zeros_like(x)
    for i, j in np.ndindex(height, width):
        top, left = i // size * size, j // size * size
        positions = [(top + k, left + l) for k, l in np.ndindex(size, size)]
        real = np.array([k < height and l < width for k, l in positions])
        tokens = np.stack([x[p] if is_real else np.zeros(dim) for p, is_real in zip(positions, real, strict=True)])
        if layer.window_padding == "mask" and not one_sided:
            tokens = tokens[real]
        query = x[i, j] @ kernel[:, :dim] + bias[:dim]
        keys = tokens @ kernel[:, dim : 2 * dim] + bias[dim : 2 * dim]
        values = tokens @ kernel[:, 2 * dim :] + bias[2 * dim :]
        for head in range(HEADS):
            part = slice(head * head_dim, (head + 1) * head_dim)
            weights = np.exp(keys[:, part] @ query[part] / head_dim**0.5)
            attended[i, j, part] = weights / weights.sum() @ values[:, part]
    return attended @ np.asarray(layer.proj.kernel[...]) + np.asarray(layer.proj.bias[...])


@settings(max_examples=25)
@given(height=sides, width=sides, size=window_sizes, window_padding=st.sampled_from(["zero", "mask"]))
def test_padding_equals_a_slow_computation(height: int, width: int, size: int, window_padding: WindowPadding) -> None:
    with float64_mode():
        layer = lsa(size, window_padding, np.float64)
        x = np.random.default_rng(0).standard_normal((1, height, width, DIM))
        # Two ways to sum the same terms in float64.
        assert relative_error(layer(jnp.asarray(x))[0], slow_lsa(layer, x[0])) < 1e-12


@pytest.mark.parametrize(("height", "width"), [(14, 21), (14, 17), (10, 21)])
def test_mask_acts_only_where_both_sides_are_padded(height: int, width: int) -> None:
    x = random_array(2, height, width, DIM)
    assert padding_bias(height, width, 7) is None
    np.testing.assert_array_equal(lsa(7, "mask")(x), lsa(7, "zero")(x))


def test_masked_padding_has_no_influence() -> None:
    x = random_array(2, 10, 17, DIM)
    masked, zero = lsa(7, "mask"), lsa(7, "zero")
    window = np.s_[:, 7:, 14:]  # 3x3 positions, alone in their window
    assert (masked(x) != zero(x)).any()
    alone = attend_all(masked, x[window])
    # float32, and the sums of 9 terms are not in the same order as those of 9 and 40 zeros.
    assert relative_error(masked(x)[window], alone) < 1e-6
    np.testing.assert_allclose(masked(x)[:, :7, :14], zero(x)[:, :7, :14], rtol=0, atol=0)


@settings(max_examples=25)
@given(data=st.data(), height=sides, width=sides, window_padding=st.sampled_from(["zero", "mask"]))
def test_lsa_sees_its_own_window_only(
    data: st.DataObject, height: int, width: int, window_padding: WindowPadding
) -> None:
    size = 7
    i, j = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    layer = lsa(size, window_padding)
    x = random_array(1, height, width, DIM)
    other = x.copy()
    other[0, i, j] += 1
    changed = (layer(jnp.asarray(x)) != layer(jnp.asarray(other))).any(axis=-1)[0]
    window = np.zeros((height, width), bool)
    window[i // size * size :, j // size * size :][:size, :size] = True
    np.testing.assert_array_equal(changed, window)


@pytest.mark.parametrize("ratio", [8, 4, 2, 1])
def test_gsa_sees_every_whole_square(ratio: int) -> None:
    layer = gsa(ratio)
    x = random_array(1, 19, 17, DIM)
    other = x.copy()
    other[0, 0, 0] += 1
    assert (layer(x) != layer(other)).any(axis=-1).all()


@pytest.mark.parametrize("ratio", [8, 4, 2])
def test_gsa_does_not_see_the_remainder(ratio: int) -> None:
    layer = gsa(ratio)
    x = random_array(1, 19, 17, DIM)
    other = x.copy()
    other[0, 18, 5] += 1  # 19 = 2 * 8 + 3 = 4 * 4 + 3 = 9 * 2 + 1
    other[0, 5, 16] += 1
    changed = np.argwhere((layer(x) != layer(other)).any(axis=-1)[0])
    np.testing.assert_array_equal(changed, [(5, 16), (18, 5)])  # as queries, these positions see themselves change
