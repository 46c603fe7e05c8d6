"""LSA's windows and padding against a slow computation of one window at a time, and the sight of LSA and GSA."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.models import random_array, random_module, relative_error
from twins_jax.attention import GlobalSubSampledAttention, LocallyGroupedAttention
from twins_jax.config import WindowPadding, variant_config
from twins_jax.ops.window_attention import join_windows, padding_bias, split_windows

DIM, HEADS = 8, 2
CONFIG = variant_config("twins_svt_tiny")
sides = st.integers(1, 15)
window_sizes = st.sampled_from([2, 3, 7])
window_paddings = st.sampled_from(["zero", "mask"])


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
    """LSA of one map [H, W, C], window by window and head by head."""
    size, (height, width, dim) = layer.window_size, x.shape
    head_dim = dim // HEADS
    leave_padding_out = layer.window_padding == "mask" and height % size and width % size
    attended = np.zeros_like(x)
    for top in range(0, height, size):
        for left in range(0, width, size):
            window = np.s_[top : top + size, left : left + size]
            real = x[window].reshape(-1, dim)
            padding = np.zeros((0 if leave_padding_out else size * size - len(real), dim))
            qkv = np.concatenate([real, padding]) @ np.asarray(layer.qkv.kernel[...]) + np.asarray(layer.qkv.bias[...])
            query, key, value = np.split(qkv, 3, axis=1)
            for head in range(HEADS):
                part = np.s_[:, head * head_dim : (head + 1) * head_dim]
                weights = np.exp(query[: len(real)][part] @ key[part].T / head_dim**0.5)
                output = weights / weights.sum(1, keepdims=True) @ value[part]
                attended[(*window, part[1])] = output.reshape(*x[window].shape[:2], head_dim)
    return attended @ np.asarray(layer.proj.kernel[...]) + np.asarray(layer.proj.bias[...])


@settings(max_examples=15)
@given(height=sides, width=sides, size=window_sizes, window_padding=window_paddings)
def test_padding_equals_a_slow_computation(height: int, width: int, size: int, window_padding: WindowPadding) -> None:
    with jax.enable_x64(True):
        layer = lsa(size, window_padding, np.float64)
        x = np.random.default_rng(0).standard_normal((1, height, width, DIM))
        # Two ways to sum the same terms in float64.
        assert relative_error(jax.jit(layer)(x)[0], slow_lsa(layer, x[0])) < 1e-12


@pytest.mark.parametrize(("height", "width"), [(14, 21), (14, 17), (10, 21)])
def test_mask_acts_only_where_both_sides_are_padded(height: int, width: int) -> None:
    x = random_array(2, height, width, DIM)
    assert padding_bias(height, width, 7) is None
    np.testing.assert_array_equal(lsa(7, "mask")(x), lsa(7, "zero")(x))
    assert padding_bias(10, 17, 7) is not None


@settings(max_examples=15)
@given(data=st.data(), height=sides, width=sides, window_padding=window_paddings)
def test_lsa_sees_its_own_window_only(
    data: st.DataObject, height: int, width: int, window_padding: WindowPadding
) -> None:
    size = 7
    i, j = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    layer = jax.jit(lsa(size, window_padding))
    x = random_array(1, height, width, DIM)
    other = x.copy()
    other[0, i, j] += 1
    changed = (layer(x) != layer(other)).any(axis=-1)[0]
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
