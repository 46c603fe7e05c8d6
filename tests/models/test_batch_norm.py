"""BatchNorm against PyTorch's in float64, and on eight simulated devices against one."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.support.models import relative_error
from twins_jax import InputError
from twins_jax.layers import BatchNorm

torch = pytest.importorskip("torch")

CHANNELS = 5
SHAPES = [(3, 4, 6, CHANNELS), (2, 1, 1, CHANNELS), (16, 1, 1, CHANNELS)]
"""The second with n / (n - 1) = 2, the third that of a pyramid pooling's coarsest scale."""


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return 3.0 + 2.0 * np.random.default_rng(seed).standard_normal(shape)


def ours(dtype: str = "float64") -> BatchNorm:
    module = BatchNorm(CHANNELS, dtype=dtype, param_dtype=dtype)
    module.scale[...] = jnp.asarray(draw(CHANNELS, seed=1), dtype)
    module.bias[...] = jnp.asarray(draw(CHANNELS, seed=2), dtype)
    return module


def theirs() -> torch.nn.BatchNorm2d:
    module = torch.nn.BatchNorm2d(CHANNELS, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(draw(CHANNELS, seed=1)))
        module.bias.copy_(torch.from_numpy(draw(CHANNELS, seed=2)))
    return module


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def nhwc(x: torch.Tensor) -> np.ndarray:
    return x.detach().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_running_statistics_are_pytorchs(shape: tuple[int, ...]) -> None:
    with jax.enable_x64(True):
        module, reference = ours(), theirs()
        for update in range(4):
            x = draw(*shape, seed=10 + update) * (1 + update)
            # Two ways to sum the same terms in float64; two positions a channel may lie close together.
            assert relative_error(module(x, training=True), nhwc(reference(nchw(x)))) < 1e-10
            assert relative_error(module.mean[...], reference.running_mean) < 1e-14
            assert relative_error(module.var[...], reference.running_var) < 1e-13
        reference.eval()
        before = [np.asarray(statistic[...]) for statistic in (module.mean, module.var)]
        assert relative_error(module(x, training=False), nhwc(reference(nchw(x)))) < 1e-13
        for statistic, kept in zip((module.mean, module.var), before, strict=True):
            np.testing.assert_array_equal(statistic[...], kept)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_pytorchs(training: bool) -> None:
    shape = SHAPES[0]
    x, weights = draw(*shape), draw(*shape, seed=3)
    reference = theirs().train(training)
    images = nchw(x).requires_grad_()
    (reference(images) * nchw(weights)).sum().backward()
    with jax.enable_x64(True):
        graphdef, params, statistics = nnx.split(ours(), nnx.Param, nnx.BatchStat)

        @jax.jit
        def gradients(params: nnx.State, x: jax.Array) -> tuple[nnx.State, jax.Array]:
            def loss(params: nnx.State, x: jax.Array) -> jax.Array:
                return (nnx.merge(graphdef, params, statistics, copy=True)(x, training=training) * weights).sum()

            found: tuple[nnx.State, jax.Array] = jax.grad(loss, argnums=(0, 1))(params, x)
            return found

        d_params, d_x = gradients(params, jnp.asarray(x))
    assert relative_error(d_x, nhwc(images.grad)) < 1e-12
    assert relative_error(d_params["scale"][...], reference.weight.grad) < 1e-12
    assert relative_error(d_params["bias"][...], reference.bias.grad) < 1e-12


def test_bfloat16_keeps_float32_statistics() -> None:
    module = BatchNorm(CHANNELS, dtype="bfloat16")
    x = jnp.asarray(draw(4, 8, 8, CHANNELS), "bfloat16")
    assert module(x, training=True).dtype == jnp.bfloat16
    assert module.mean[...].dtype == module.var[...].dtype == jnp.float32
    values = np.asarray(x, np.float64).reshape(-1, CHANNELS)
    # bfloat16 sums would be off by 1e-3 or more.
    assert relative_error(module.mean[...], 0.1 * values.mean(0)) < 1e-6
    assert relative_error(module.var[...], 0.9 + 0.1 * values.var(0, ddof=1)) < 1e-6


def test_statistics_are_no_parameters() -> None:
    module = BatchNorm(CHANNELS)
    assert nnx.state(module, nnx.Param).keys() == {"scale", "bias"}
    assert nnx.state(module, nnx.BatchStat).keys() == {"mean", "var"}


def test_one_position_has_no_variance() -> None:
    with pytest.raises(InputError, match=r"^x.shape=\(1, 1, 1, 5\): must be of more than one position in training$"):
        ours("float32")(jnp.ones((1, 1, 1, CHANNELS)), training=True)


SCRIPT = """
import jax, numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from twins_jax.layers import BatchNorm
from twins_jax.sharding import batch_sharding, make_mesh

rng = np.random.default_rng(0)
# Each device's images have a mean of their own: statistics by device would differ.
x = rng.standard_normal((8, 3, 4, 6)) + np.arange(8.0)[:, None, None, None]
graphdef, state = nnx.split(BatchNorm(6, dtype="float64", param_dtype="float64"))

@jax.jit
def train(state, x):
    def outputs(state, x):
        module = nnx.merge(graphdef, state)
        return module(x, training=True), nnx.state(module)
    y, vjp, state = jax.vjp(outputs, state, x, has_aux=True)
    return y, vjp(jax.numpy.sin(y)), state

assert jax.device_count() == 8
mesh = make_mesh(fsdp=2)
expected = train(state, x)
whole = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
found = train(whole, jax.device_put(x, batch_sharding(mesh)))
assert len(found[0].sharding.device_set) == 8
for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
print("same")
"""


def test_a_batch_over_eight_devices_has_the_statistics_of_all() -> None:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_ENABLE_X64": "true",
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "same\n", done.stderr
