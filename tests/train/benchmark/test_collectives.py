"""Collectives of programs whose traffic is known by hand: written text, and programs for eight simulated devices."""

import json
import os
import subprocess
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from tests.support.paths import ROOT
from train.benchmark.collectives import Collectives, read_traffic
from train.benchmark.hlo import type_bytes

FLOATS = 1000 * 32  # on each device


def program(*instructions: str, computations: str = "", partitions: int = 4) -> str:
    body = "\n".join(f"  {line}" for line in instructions)
    entry = f"ENTRY %main (x: f32[8]) -> f32[8] {{\n{body}\n}}\n"
    return f"HloModule jit_f, num_partitions={partitions}\n{computations}\n{entry}"


X = "%x = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)"  # 2,048 bytes


def test_asynchronous_collectives_count_once() -> None:
    text = program(
        X,
        "%g = (bf16[8,128]{1,0:T(8,128)(2,1)}, bf16[32,128]{1,0:T(8,128)(2,1)}) all-gather-start(%x), dimensions={0}",
        "%p = (bf16[8,128]{1,0}, bf16[8,128]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x),"
        " source_target_pairs={{0,1},{1,0}}",
        "%gd = bf16[32,128]{1,0} all-gather-done(%g)",
        "%pd = bf16[8,128]{1,0} collective-permute-done(%p)",
        "%r = (f32[16], f32[]) all-reduce-start(%a, /*index=1*/%b), to_apply=%add",
        "%a = f32[16]{0} parameter(1)",
        "%b = f32[] parameter(2)",
        "ROOT %rd = (f32[16], f32[]) all-reduce-done(%r)",
    )
    assert read_traffic(text).kinds == {
        "all-gather": Collectives(1, 4 * 2048, 3 * 2048),
        "all-reduce": Collectives(1, 68, 2 * 68 * 3 / 4),
        "collective-permute": Collectives(1, 2048, 2048),
    }


def test_collective_in_a_wrapped_computation_counts_once() -> None:
    wrapped = "%wrapped (p: bf16[8,128]) -> bf16[2,128] {\n  %p = bf16[8,128]{1,0} parameter(0)\n"
    wrapped += "  ROOT %s = bf16[2,128]{1,0} reduce-scatter(%p), to_apply=%add\n}\n"
    text = program(
        X,
        "%s = ((bf16[8,128]), bf16[2,128], u32[]) async-start(%x), calls=%wrapped",
        "%u = ((bf16[8,128]), bf16[2,128], u32[]) async-update(%s), calls=%wrapped",
        "ROOT %d = bf16[2,128] async-done(%u), calls=%wrapped",
        computations=wrapped,
    )
    assert read_traffic(text).kinds == {"reduce-scatter": Collectives(1, 2048, 2048 * 3 / 4)}


def test_reduce_scatter_of_tpu_is_a_fusion() -> None:
    fused = "%all-reduce-scatter.1 (p: bf16[8,128]) -> bf16[4,128] {\n  %p = bf16[8,128]{1,0} parameter(0)\n"
    fused += "  %r = bf16[8,128]{1,0} all-reduce(%p), replica_groups={{0,1},{2,3}}, to_apply=%add\n"
    fused += "  ROOT %s = bf16[4,128]{1,0} dynamic-slice(%r, %i, %z), dynamic_slice_sizes={4,128}\n}\n"
    text = program(X, "ROOT %f = bf16[4,128] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1", computations=fused)
    assert read_traffic(text).kinds == {"reduce-scatter": Collectives(1, 2048, 1024)}


def test_collective_that_tpu_spreads_over_fusions_counts_once() -> None:
    """One in three fusions, a second one of the same channel, and two of one channel that are not spread."""
    gather = "all-gather(%p), channel_id={}, replica_groups=[1,4]<=[4], dimensions={{0}}"
    chain = gather + ', frontend_attributes={{chain_id="{}"}}'
    holds = [
        chain.format(7, 0),
        chain.format(7, 0),
        chain.format(7, 0),
        chain.format(7, 1),
        gather.format(8),
        gather.format(8),
    ]
    computations = "".join(
        f"%fused.{i} (p: bf16[8,128]) -> bf16[32,128] {{\n  %p = bf16[8,128]{{1,0}} parameter(0)\n"
        f"  ROOT %g.{i} = bf16[32,128]{{1,0}} {held}\n}}\n"
        for i, held in enumerate(holds)
    )
    calls = [f"%f.{i} = bf16[32,128] fusion(%x), kind=kCustom, calls=%fused.{i}" for i in range(len(holds))]
    traffic = read_traffic(program(X, *calls, computations=computations))
    assert traffic.kinds == {"all-gather": Collectives(4, 4 * 4 * 2048, 4 * 3 * 2048)}


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{}", 16),
        ("{{0,1},{2,3}}", 2),
        ("{{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}}", 16),
        ("[4,4]<=[16]", 4),
        ("[2,8]<=[4,2,2]T(1,0,2)", 8),
        ("mesh['data'=2,'fsdp'=8] {'fsdp'}", 8),
        ("mesh['data'=2,'fsdp'=8], device_ids=([8,2]T(1,0)) {'data'}", 2),
        ("mesh['data'=2,'fsdp'=8] {'data','fsdp'}", 16),
        ("mesh['data'=2,'fsdp'=8] {'data','fsdp':(2)2}", 4),
    ],
)
def test_sizes_of_groups(groups: str, size: int) -> None:
    text = program(X, f"ROOT %r = bf16[8,128] all-reduce(%x), replica_groups={groups}, to_apply=%add", partitions=16)
    assert read_traffic(text).total == Collectives(1, 2048, 2 * 2048 * (size - 1) / size)


def loop(*, start: str = "constant(0)", step: str = "constant(1)", limit: str = "constant(4)", test: str = "LT") -> str:
    computations = f"""
%body (s: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {{
  %one = s32[] {step}
  %s = (s32[], bf16[8,128]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = bf16[8,128] get-tuple-element(%s), index=1
  %copy = s32[] copy(%i)
  %next = s32[] add(%copy, %one)
  %r = bf16[8,128] all-reduce(%x), to_apply=%add
  ROOT %t = (s32[], bf16[8,128]) tuple(%next, %r)
}}

%condition (s: (s32[], bf16[8,128])) -> pred[] {{
  %limit = s32[] {limit}
  %s = (s32[], bf16[8,128]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %less = pred[] compare(%i, %limit), direction={test}
}}
"""
    return program(
        X,
        f"%start = s32[] {start}",
        "%copy = s32[] copy(%start)",
        "%t = (s32[], bf16[8,128]) tuple(%copy, %x)",
        "ROOT %w = (s32[], bf16[8,128]) while(%t), condition=%condition, body=%body",
        computations=computations,
    )


def test_loops_count_as_often_as_they_run() -> None:
    assert read_traffic(loop()).total.count == 4
    assert read_traffic(loop(start="constant(1)")).total == Collectives(3, 3 * 2048, 3 * 2 * 2048 * 3 / 4)
    known = loop(test="GT").replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"},"x":{"n":"3"}}'
    )
    assert read_traffic(known).total.count == 7


@pytest.mark.parametrize(
    "changes", [{"start": "parameter(1)"}, {"step": "constant(2)"}, {"limit": "parameter(1)"}, {"test": "GT"}]
)
def test_loops_of_unknown_length_are_reported(changes: dict[str, str]) -> None:
    traffic = read_traffic(loop(**changes))
    assert traffic.total.count == 1
    assert traffic.in_open_loops == 1
    assert read_traffic(loop()).in_open_loops == 0


@pytest.mark.parametrize(
    ("type_", "size"),
    [
        ("f32[]", 4),
        ("bf16[8,4]{1,0:T(8,128)(2,1)}", 64),
        ("pred[3]{0}", 3),
        ("s4[6]{0}", 3),
        ("f8e4m3fn[5]", 5),
        ("(f32[2]{0}, (u8[3]{0}, c64[1]), token[])", 19),
        ("f32[0,7]", 0),
    ],
)
def test_bytes_of_types(type_: str, size: int) -> None:
    assert type_bytes(type_) == size


def test_text_that_is_no_program() -> None:
    with pytest.raises(ValueError, match="ENTRY"):
        read_traffic("module @jit_f {}")


def by_hand(count: int, floats: float, sent: float) -> list[float]:
    return [count, 4 * floats, 4 * sent]


# Over 8 devices in a 2 x 4 mesh, each with FLOATS numbers; the last runs three times.
EXPECTED = {
    "psum over 4": {"all-reduce": by_hand(1, FLOATS, 2 * FLOATS * 3 / 4)},
    "psum over 8": {"all-reduce": by_hand(1, FLOATS, 2 * FLOATS * 7 / 8)},
    "all_gather over 2": {"all-gather": by_hand(1, 2 * FLOATS, FLOATS)},
    "psum_scatter over 4": {"reduce-scatter": by_hand(1, FLOATS, FLOATS * 3 / 4)},
    "all_to_all over 4": {"all-to-all": by_hand(1, FLOATS, FLOATS * 3 / 4)},
    "ppermute": {"collective-permute": by_hand(1, FLOATS, FLOATS)},
    "psum in a loop": {"all-reduce": by_hand(3, 3 * FLOATS, 3 * 2 * FLOATS / 2)},
}


def measure() -> dict[str, dict[str, list[float]]]:
    """The same programs, written in JAX and compiled for eight devices of this machine."""
    programs: dict[str, Callable[[jax.Array], jax.Array]] = {
        "psum over 4": lambda x: lax.psum(x, "b"),
        "psum over 8": lambda x: lax.psum(x, ("a", "b")),
        "all_gather over 2": lambda x: lax.all_gather(x, "a", tiled=True),
        "psum_scatter over 4": lambda x: lax.psum_scatter(x, "b", tiled=True),
        "all_to_all over 4": lambda x: lax.all_to_all(x, "b", 0, 0, tiled=True),
        "ppermute": lambda x: lax.ppermute(x, "b", [(0, 1), (1, 2), (2, 3), (3, 0)]),
        "psum in a loop": lambda x: lax.fori_loop(0, 3, lambda _, y: jnp.sin(lax.psum(y, "a")), x),
    }
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    x = jax.ShapeDtypeStruct((8 * 1000, 32), jnp.float32)
    found = {}
    for name, function in programs.items():
        mapped = jax.shard_map(function, mesh=mesh, in_specs=P(("a", "b")), out_specs=P(("a", "b")), check_vma=False)
        text = jax.jit(mapped).lower(x).compile().as_text()
        assert text is not None
        kinds = read_traffic(text).kinds
        found[name] = {kind: [c.count, c.payload_bytes, c.sent_bytes] for kind, c in kinds.items()}
    return found


def test_programs_of_known_traffic() -> None:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    process = subprocess.run(
        [sys.executable, __file__], cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr[-4000:]
    assert json.loads(process.stdout) == EXPECTED


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure()))
