from collections.abc import Iterator

import jax
import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def _comparable_rounding() -> Iterator[None]:
    """Both sides sum in blocks (see `twins_jax.matmul`), and PyTorch in an order that no other process can change."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with jax.default_matmul_precision("highest"):
        yield
    torch.set_num_threads(threads)
