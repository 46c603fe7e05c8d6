"""Tiles of the kernels, and the call of a kernel."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.pallas import triton as plgpu
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

TILE = 64
"""Queries, and keys, of one tile of scores. A window's 49 and the 49 keys of GSA at 224x224 fill one."""

COMPILER_PARAMS = plgpu.CompilerParams(num_warps=4, num_stages=1)
"""Triton's. With 4 warps no kernel spills registers in bfloat16 (docs/gpu_attention.md). Loops are short: their loads
are not pipelined. Neither has been tuned on a GPU."""

Arrays = tuple[jax.Array, ...]
Ref = Any
"""An array within a kernel; `plgpu.load` and `jax.Array.at` do not agree on a public type."""


def call(kernel: Callable[..., Arrays], batched: Sequence[jax.Array], shared: Sequence[jax.Array] = ()) -> Arrays:
    """Calls a kernel that works on one image at a time: compiled or interpreted, its batch split over devices.

    Pallas interprets kernels where it cannot compile them. The platform that the program is lowered for decides; it may
    differ from the platform that lowers it. XLA cannot look into a kernel: left alone, it would gather the whole batch
    on every device and compute all of it there.

    Args:
        kernel: a function of the arrays, and of `interpret` by keyword, that returns arrays with the batch as their
            first axis.
        batched: arguments with the batch as their first axis.
        shared: arguments after them that every image reads.
    """

    def run(*arrays: jax.Array) -> Arrays:
        interpreted, compiled = (functools.partial(kernel, interpret=value) for value in (True, False))
        found: Arrays = lax.platform_dependent(*arrays, default=interpreted, cuda=compiled, rocm=compiled)
        return found

    def partition(mesh: Mesh, arguments: Any, results: Any) -> Any:
        spec = arguments[0].sharding.spec
        split, whole = NamedSharding(mesh, P(spec[0] if spec else None)), NamedSharding(mesh, P())
        return mesh, run, (split,) * len(results), (split,) * len(batched) + (whole,) * len(shared)

    def sharding_rule(mesh: Mesh, arguments: Sequence[Any], results: Sequence[Any]) -> tuple[str, dict[str, Any]]:
        del mesh
        whole: list[str] = []

        def axes(rank: int, *first: str) -> str:
            new = [f"axis{len(whole) + i}" for i in range(rank - len(first))]
            whole.extend(new)
            return " ".join((*first, *new))

        left = [axes(x.rank, "batch") for x in arguments[: len(batched)]]
        left += [axes(x.rank) for x in arguments[len(batched) :]]
        right = [axes(x.rank, "batch") for x in results]
        return f"{', '.join(left)} -> {', '.join(right)}", {"need_replication_factors": tuple(whole)}

    partitioned = custom_partitioning(run)
    partitioned.def_partition(partition, sharding_rule=sharding_rule)
    found: Arrays = partitioned(*batched, *shared)
    return found


def positions(start: jax.Array | int = 0) -> jax.Array:
    """int32 [TILE]: start, start + 1, ..."""
    return jnp.asarray(start, jnp.int32) + lax.iota(jnp.int32, TILE)


def dot(x: jax.Array, y: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """The product of two tiles over one axis of each, in float32."""
    return lax.dot_general(x, y, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=jnp.float32)
