"""The convolution of the dense heads against PyTorch in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.models import relative_error
from twins_jax import ops

torch = pytest.importorskip("torch")
F = pytest.importorskip("torch.nn.functional")


@pytest.mark.parametrize(
    ("size", "height", "width", "stride", "with_bias"),
    [
        (1, 7, 10, 1, True),
        (1, 7, 10, 2, False),
        (3, 8, 13, 1, False),
        (3, 8, 13, 2, True),
        (3, 7, 10, 2, True),
        (3, 1, 2, 1, True),
        (5, 4, 9, 1, True),
    ],
)
def test_outputs_and_gradients_equal_pytorch(size: int, height: int, width: int, stride: int, with_bias: bool) -> None:
    rng = np.random.default_rng(0)
    x, kernel, bias = (rng.standard_normal(shape) for shape in ((2, height, width, 5), (size, size, 5, 6), (6,)))
    tensors = [torch.from_numpy(array).requires_grad_() for array in (x, kernel, bias)]
    given = 3 if with_bias else 2
    reference = F.conv2d(
        tensors[0].permute(0, 3, 1, 2),
        tensors[1].permute(3, 2, 0, 1),
        tensors[2] if with_bias else None,
        stride=stride,
        padding=size // 2,
    ).permute(0, 2, 3, 1)
    weights = rng.standard_normal(reference.shape)
    (reference * torch.from_numpy(weights)).sum().backward()

    @jax.jit
    def run(weights: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        y, pull_back = jax.vjp(lambda *arrays: ops.conv(*arrays, stride=stride, dtype=jnp.float64), *arrays)
        return y, pull_back(weights)

    with jax.enable_x64(True):
        y, gradients = run(weights, *(x, kernel, bias)[:given])
    assert y.dtype == np.float64
    assert relative_error(y, reference.detach()) < 1e-13
    for gradient, tensor in zip(gradients, tensors[:given], strict=True):
        assert relative_error(gradient, tensor.grad) < 1e-13


def test_bfloat16_rounds_once() -> None:
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(shape), "bfloat16") for shape in ((1, 5, 6, 64), (3, 3, 64, 8)))
    y = ops.conv(x, kernel, dtype="bfloat16")
    assert y.dtype == jnp.bfloat16
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(array, np.float64)) for array in (x, kernel)]
        truth = np.asarray(ops.conv(*wide, dtype="float64"))
    # Half a unit in bfloat16's last place; sums rounded on the way would be off by several.
    assert np.all(np.abs(np.asarray(y, np.float64) - truth) <= 2.0**-8 * np.abs(truth) + 1e-4)
