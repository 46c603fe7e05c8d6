"""The operations that a run counts."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from train.flops import forward_flops
from twins_jax.sharding import make_mesh


def test_the_body_of_a_loop_counts_as_often_as_it_runs() -> None:
    side = 64

    def apply(params: jax.Array, images: jax.Array) -> jax.Array:
        def three_times(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return lax.scan(lambda x, _: (x @ params, None), x, length=3)

        return jax.checkpoint(lambda x: lax.scan(three_times, x, length=5)[0])(images[0, :, :, 0])

    shapes = jax.ShapeDtypeStruct((side, side), jnp.float32)
    on_a_mesh = jax.device_put(jnp.ones(shapes.shape), NamedSharding(make_mesh(1), PartitionSpec()))  # as in a run
    for params in (shapes, on_a_mesh):
        assert forward_flops(apply, params, side) == pytest.approx(3 * 5 * 2 * side**3, rel=0.01)
