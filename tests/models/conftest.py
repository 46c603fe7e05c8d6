import jax
import pytest

import twins_jax
from tests.support.models import IMAGES, SVT, classifier


@pytest.fixture(scope="session")
def logits() -> jax.Array:
    """Of `classifier(SVT)` for `IMAGES`."""
    apply, params = twins_jax.split_model(classifier(SVT))
    return jax.jit(apply)(params, IMAGES)
