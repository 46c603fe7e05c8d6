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

_kept_alive: list[object] = []


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    torch = pytest.importorskip("torch")
    # With a CPU-only torch the compiled operators of torchvision do not load, and its import needs their schemas.
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept_alive.append(library)  # its definitions go when it goes
    return pytest.importorskip("torchvision")


@pytest.fixture(scope="session")
def timm(torchvision: ModuleType) -> ModuleType:  # noqa: ARG001 - timm imports torchvision
    return pytest.importorskip("timm")
