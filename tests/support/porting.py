"""Runs `port_weights.py`, and compares bits."""

import torch

import port_weights

State = dict[str, torch.Tensor]


def run(*arguments: object) -> None:
    """Runs the command, which must end well."""
    assert port_weights.main([str(argument) for argument in arguments]) == 0


def assert_same(found: State, expected: State) -> None:
    """Compares names, dtypes and bits."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].numpy().tobytes() == tensor.numpy().tobytes(), name
