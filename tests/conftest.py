import gc
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


# Files that take long, the longest first. They begin the run: with `--dist loadfile` one that came last would keep one
# worker busy while the other has nothing left to do.
LONG = (
    *("test_distributed_processes.py", "test_run.py", "test_segmentation_run.py", "test_speed.py", "test_models.py"),
    *("test_detection_run.py", "test_devices.py", "test_distributed_devices.py", "test_run_weights.py"),
    *("test_options.py", "test_pallas.py", "test_bfloat16.py", "test_mixed_precision.py", "test_pipeline.py"),
    *("test_roofline.py", "test_xla_cpu_chunks.py"),
    *("test_checkpoint_damage.py", "test_run_multi_label.py", "test_run_refused.py", "test_old_run.py", "test_step.py"),
)


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # xdist would put the files with the most tests first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


# The garbage collector took a tenth of the time. Tracing makes many objects, few of them garbage in cycles; and the
# modules' objects, which live to the end, need not be looked at in each full collection.
gc.set_threshold(20_000)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


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
