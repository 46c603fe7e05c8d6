from importlib.util import find_spec
from types import ModuleType

import hypothesis
import jax
import pytest

# Without torch there is nothing to compare with.
collect_ignore = [] if find_spec("torch") else ["parity", "port"]

# The whole run, data workers' threads included: an operation that mixes dtypes by accident is an error.
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The same examples in every run, and no deadline: the first example of a shape compiles.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    from twins_jax.port.timm_models import define_torchvision_operators

    pytest.importorskip("torch")
    define_torchvision_operators()
    return pytest.importorskip("torchvision")


@pytest.fixture(scope="session")
def timm(torchvision: ModuleType) -> ModuleType:  # noqa: ARG001 - timm imports torchvision
    from twins_jax.port.timm_models import import_timm

    pytest.importorskip("timm")
    return import_timm()
