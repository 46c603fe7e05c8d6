from collections.abc import Iterator

import jax
import pytest

import twins_jax
from tests.support.compilation import fast_compilation
from tests.support.models import IMAGES, SVT, classifier


@pytest.fixture(scope="module", autouse=True)
def _fast_compilation() -> Iterator[None]:
    """These tests are of what a model computes; tests/parity compares its rounding, compiled as users compile it."""
    with fast_compilation():
        yield


@pytest.fixture(scope="session")
def logits() -> jax.Array:
    """Of `classifier(SVT)` for `IMAGES`."""
    apply, params = twins_jax.split_model(classifier(SVT))
    with fast_compilation():
        return jax.jit(apply)(params, IMAGES)
