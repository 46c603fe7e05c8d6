"""Kernels, and attention in blocks, over eight simulated devices: each computes its own part of the batch."""

import os
import subprocess
import sys

SCRIPT = """
import jax, numpy as np
from twins_jax.ops.attention import attention_in_blocks
from twins_jax.ops.pallas.gsa import gsa
from twins_jax.ops.pallas.lsa import Windows, lsa
from twins_jax.sharding import batch_sharding, make_mesh
from jax.sharding import NamedSharding, PartitionSpec

rng = np.random.default_rng(0)
normal = lambda *shape: rng.standard_normal(shape, np.float32)
mesh = make_mesh(fsdp=2)
windows = Windows(8, 9, 7, see_padding=True)
attentions = {
    "lsa": (lambda qkv, padding: lsa(qkv, padding, 2, windows), [normal(8, 8, 9, 96)], [normal(96)]),
    "gsa": (lambda query, key_value: gsa(query, key_value, 2), [normal(8, 20, 32), normal(8, 9, 64)], []),
    "blocks": (lambda *heads: attention_in_blocks(*heads, 7), [normal(8, size, 2, 16) for size in (20, 9, 9)], []),
}
for name, (attention, batched, shared) in attentions.items():
    def both(*arguments):
        outputs, vjp = jax.vjp(attention, *arguments)
        return outputs, vjp(jax.numpy.sin(outputs))

    expected = jax.jit(both)(*batched, *shared)
    split = [jax.device_put(x, batch_sharding(mesh)) for x in batched]
    whole = [jax.device_put(x, NamedSharding(mesh, PartitionSpec())) for x in shared]
    compiled = jax.jit(both).lower(*split, *whole).compile()
    found = compiled(*split, *whole)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    shards = [shard.data.shape[0] for x in (found[0], found[1][0]) for shard in x.addressable_shards]
    assert shards == [1] * 16, (name, shards)
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in compiled.as_text(), (name, collective)
print("same")
"""


def test_each_device_computes_its_part() -> None:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "same\n", done.stderr
