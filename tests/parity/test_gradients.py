"""Gradients against PyTorch's autograd, in float64."""

from types import ModuleType

import jax
import numpy as np
import torch
from flax import traverse_util

import twins_jax
from tests.parity.reference import load, make_tiny, precision, relative_error


def test_gradients_equal_autograd(timm: ModuleType) -> None:
    theirs = make_tiny(timm).double()
    rng = np.random.default_rng(0)
    images, weights = rng.standard_normal((2, 70, 100, 3)), rng.standard_normal((2, 10))  # odd maps: 17x25, 8x12, ...
    (theirs(torch.from_numpy(images).permute(0, 3, 1, 2)) * torch.from_numpy(weights)).sum().backward()

    with precision(np.float64):
        model = load(theirs.state_dict(), dtype=np.float64, param_dtype=np.float64)
        apply, params = twins_jax.split_model(model)
        gradients = jax.jit(jax.grad(lambda params: (apply(params, images) * weights).sum()))(params)
        # PyTorch's gradients take the way of the weights, into our names and axes.
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.copy_(parameter.grad)
        expected = twins_jax.get_params(load(theirs.state_dict(), dtype=np.float64, param_dtype=np.float64))

    gradients, expected = (traverse_util.flatten_dict(tree, sep="/") for tree in (gradients, expected))
    assert gradients.keys() == expected.keys()
    for path, gradient in gradients.items():
        assert np.abs(expected[path]).max() > 0, path
        # Measured: up to 3e-15 of the largest component; a wrong term would be off by a sizeable part of it.
        assert relative_error(np.asarray(gradient), np.asarray(expected[path])) < 1e-12, path
