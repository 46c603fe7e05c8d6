"""Attention a block of queries at a time, where the scores of all would take too much memory."""

from collections.abc import Callable
from itertools import accumulate
from operator import mul
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from tests.support.models import random_array, relative_error
from twins_jax import ops
from twins_jax.backbone import PATCH_SIZES
from twins_jax.config import VARIANTS
from twins_jax.ops import dispatch
from twins_jax.ops.attention import compiled_attention_in_blocks
from twins_jax.ops.dispatch import queries_at_once

HEADS, DIM = 2, 8
QUERIES, KEYS = (7, 19), (3, 5)
"""Maps of 133 queries, which 7 and 19 alone divide, and 15 keys."""

BYTES_OF_A_QUERY = HEADS * 15 * 4


def inputs(batch: int = 2) -> tuple[np.ndarray, ...]:
    """A query map, one of keys and values, and a cotangent."""
    query, cotangent = (random_array(batch, *QUERIES, HEADS * DIM, seed=i) for i in (0, 1))
    return 2 * query, random_array(batch, *KEYS, 2 * HEADS * DIM, seed=2), cotangent


def expected(query: np.ndarray, key_value: np.ndarray, cotangent: np.ndarray) -> tuple[np.ndarray, ...]:
    """The attention and its gradients by the formulas, in float64: of the maps, [B, N, heads, d] inside."""
    shapes = query.shape, key_value.shape
    query, key_value, cotangent = (
        np.asarray(x, np.float64).reshape(len(x), -1, parts, HEADS, DIM)
        for x, parts in ((query, 1), (key_value, 2), (cotangent, 1))
    )
    query, key, value, cotangent = query[:, :, 0], key_value[:, :, 0], key_value[:, :, 1], cotangent[:, :, 0]
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / DIM**0.5
    weights = np.exp(scores)
    weights /= weights.sum(-1, keepdims=True)
    of_weights = np.einsum("bqhd,bkhd->bhqk", cotangent, value)
    of_scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdims=True)) / DIM**0.5
    of_key, of_value = (np.einsum("bhqk,bqhd->bkhd", *x) for x in ((of_scores, query), (weights, cotangent)))
    return (
        np.einsum("bhqk,bkhd->bqhd", weights, value).reshape(shapes[0]),
        np.einsum("bhqk,bkhd->bqhd", of_scores, key).reshape(shapes[0]),
        np.stack([of_key, of_value], axis=2).reshape(shapes[1]),
    )


def attention_and_gradients() -> Any:
    """A function of its own each time: JAX traces a function once, and the tests set the bound anew."""

    @jax.jit
    def function(query: jax.Array, key_value: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, ...]:
        attended, pull_back = jax.vjp(lambda *maps: ops.attention(*maps, HEADS), query, key_value)
        return attended, *pull_back(cotangent)

    return function


def errors(found: tuple[jax.Array, ...], truth: tuple[np.ndarray, ...]) -> list[float]:
    return [relative_error(*pair) for pair in zip(found, truth, strict=True)]


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the number of queries whose scores are held at once."""

    def hold(queries: int) -> None:
        monkeypatch.setattr(dispatch, "BLOCK_SCORES", queries * BYTES_OF_A_QUERY)

    return hold


def test_a_block_has_as_many_queries_as_fit(hold: Callable[[int], None]) -> None:
    hold(50)
    assert queries_at_once(50, 15, HEADS, jnp.float32) == 50
    assert queries_at_once(51, 15, HEADS, jnp.float32) == 26
    assert queries_at_once(50, 15, HEADS, jnp.float64) == 25
    assert queries_at_once(131, 15, HEADS, jnp.bfloat16) == 44  # a prime, in three blocks
    assert queries_at_once(3, 15 * 50, HEADS, jnp.float32) == 1
    assert queries_at_once(3, 15 * 51, HEADS, jnp.float32) == 1  # beyond the bound: a block has one at least


@pytest.mark.parametrize("side", [224, 1024])
def test_only_large_images_are_attended_in_blocks(side: int) -> None:
    strides = list(accumulate(PATCH_SIZES, mul))
    for config in VARIANTS.values():
        stages = zip(config.num_heads, strides, config.sub_sampling_ratios, strict=True)
        sizes = [((side // stride) ** 2, (side // stride // ratio) ** 2, heads) for heads, stride, ratio in stages]
        blocks = sum(queries_at_once(*size, jnp.float32) < size[0] for size in sizes)
        assert (blocks >= 3) if side == 1024 else (blocks == 0)


@pytest.mark.parametrize(("variant", "side"), [("svt_large", 384), ("svt_small", 448), ("pcpvt_small", 544)])
def test_first_sides_in_blocks(variant: str, side: int) -> None:
    """Of the first stage, in steps of 32 pixels."""
    heads, ratio = (getattr(VARIANTS[f"twins_{variant}"], name)[0] for name in ("num_heads", "sub_sampling_ratios"))
    for each, in_blocks in ((side - 32, False), (side, True)):
        queries = (each // 4) ** 2
        assert (queries_at_once(queries, (each // 4 // ratio) ** 2, heads, jnp.float32) < queries) == in_blocks


@pytest.mark.parametrize("size", [1, 19, 44, 132])
def test_float64_equals_the_formulas(size: int, hold: Callable[[int], None]) -> None:
    with jax.enable_x64(True):
        hold(2 * size)
        maps = [jnp.asarray(x, jnp.float64) for x in inputs()]
        program = attention_and_gradients().lower(*maps)
        assert "stablehlo.while" in program.as_text()
        assert max(errors(program.compile()(*maps), expected(*inputs()))) < 1e-14


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounds_as_little_as_all_queries_at_once(dtype: type, hold: Callable[[int], None]) -> None:
    maps = [jnp.asarray(x, dtype) for x in inputs()]
    truth = expected(*(np.asarray(x, np.float64) for x in maps))
    with jax.default_matmul_precision("float32"):
        at_once = errors(attention_and_gradients()(*maps), truth)
        hold(5)
        in_blocks = attention_and_gradients()(*maps)
    assert [x.dtype for x in in_blocks] == [dtype] * 3
    # The sum over 27 blocks of the gradients of keys and values is one of float32, with bfloat16 too.
    assert np.all(np.array(errors(in_blocks, truth)) <= 1.5 * np.array(at_once) + float(jnp.finfo(jnp.float32).eps))


def test_neither_pass_holds_all_scores(hold: Callable[[int], None]) -> None:
    query, key_value = jnp.zeros((1, 64, 64, HEADS * DIM)), jnp.zeros((1, 16, 16, 2 * HEADS * DIM))
    all_scores = HEADS * 64**2 * 16**2 * 4

    def planned(function: Any) -> int:
        size: int = function.lower(query, key_value, query).compile().memory_analysis().temp_size_in_bytes
        return size

    assert planned(attention_and_gradients()) > 2 * all_scores
    hold(all_scores // 32 // BYTES_OF_A_QUERY)
    assert planned(jax.jit(lambda query, key_value, _: ops.attention(query, key_value, HEADS))) < all_scores / 8
    assert planned(attention_and_gradients()) < all_scores / 4


def test_tangents_pass_through_blocks(hold: Callable[[int], None]) -> None:
    query, key_value, along = inputs()

    def tangent() -> Any:
        return jax.jit(lambda query: jax.jvp(lambda x: ops.attention(x, key_value, HEADS), (query,), (along,))[1])

    at_once = tangent()(query)
    hold(40)
    program = tangent().lower(query)
    assert "stablehlo.while" in program.as_text()
    assert relative_error(program.compile()(query), at_once) < 8 * float(jnp.finfo(jnp.float32).eps)


def test_calls_outside_of_jit_compile_the_loop_once(hold: Callable[[int], None]) -> None:
    hold(40)
    query, key_value, _ = inputs()
    before = compiled_attention_in_blocks._cache_size()  # type: ignore[attr-defined]
    first = ops.attention(query, key_value, HEADS)
    np.testing.assert_array_equal(ops.attention(query, key_value, HEADS), first)
    assert compiled_attention_in_blocks._cache_size() == before + 1  # type: ignore[attr-defined]


def test_an_exported_program_takes_any_batch(hold: Callable[[int], None]) -> None:
    hold(40)
    query, key_value, cotangent = inputs()
    symbol = export.symbolic_shape("batch")[0]
    shapes = [jax.ShapeDtypeStruct((symbol, *x.shape[1:]), jnp.float32) for x in (query, key_value)]
    exported = export.export(jax.jit(lambda *maps: ops.attention(*maps, HEADS)))(*shapes)
    assert "stablehlo.while" in exported.mlir_module()
    truth = expected(query, key_value, cotangent)[0]
    for batch in (1, 2):
        found = exported.call(query[:batch], key_value[:batch])
        np.testing.assert_allclose(found, truth[:batch], atol=1e-6)
