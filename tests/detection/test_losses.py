"""The focal loss against torchvision's in float64."""

from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.models import relative_error
from twins_jax.detection.losses import sigmoid_focal_loss


@jax.jit
def value_and_gradient(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    losses, pull_back = jax.vjp(lambda logits: sigmoid_focal_loss(logits, targets), logits)
    return losses, pull_back(weights)[0]


def test_value_and_gradient(torchvision: ModuleType) -> None:
    import torch

    logits = np.concatenate([np.linspace(-12, 12, 101), np.random.default_rng(0).normal(0, 3, 99)]).astype(np.float32)
    targets = np.arange(200) % 3 == 0
    weights = np.linspace(0.5, 1.5, 200, dtype=np.float32)
    double = torch.from_numpy(logits).double().requires_grad_()
    expected = torchvision.ops.sigmoid_focal_loss(double, torch.from_numpy(targets).double(), alpha=0.25, gamma=2)
    (expected * torch.from_numpy(weights).double()).sum().backward()
    losses, gradient = value_and_gradient(logits, targets, weights)
    assert relative_error(losses, expected.detach().numpy()) < 1e-6
    assert relative_error(gradient, double.grad.numpy()) < 1e-6
    np.testing.assert_allclose(losses, expected.detach().numpy(), rtol=3e-6)  # of each, small ones included


def test_large_logits_stay_finite() -> None:
    logits, targets = np.array([-1e4, -100.0, 100.0, 1e4] * 2, np.float32), np.arange(8) < 4
    losses, gradients = value_and_gradient(logits, targets, np.ones(8, np.float32))
    np.testing.assert_allclose(losses, [2500, 25, 0, 0, 0, 0, 75, 7500], atol=1e-6)
    np.testing.assert_allclose(gradients, [-0.25, -0.25, 0, 0, 0, 0, 0.75, 0.75], atol=1e-6)


def test_bfloat16_logits() -> None:
    logits = jnp.linspace(-5, 5, 8).astype(jnp.bfloat16)
    targets, weights = np.arange(8) < 4, np.ones(8, np.float32)
    losses, gradients = value_and_gradient(logits, targets, weights)
    np.testing.assert_array_equal(losses, value_and_gradient(logits.astype(jnp.float32), targets, weights)[0])
    assert (losses.dtype, gradients.dtype) == (jnp.float32, jnp.bfloat16)
