import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest

from tests.support.models import SVT
from tests.support.saving import NAME
from tests.support.timm_twins import make_timm
from twins_jax.config import VARIANTS, variant_config

torch = pytest.importorskip("torch")

Tensors = dict[str, np.ndarray]


@pytest.fixture(autouse=True, scope="module")
def _one_torch_thread() -> Iterator[None]:
    """PyTorch's order of summation, hence its rounding, depends on the threads; they also slow each other down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the cache of `_compile_once`."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(autouse=True, scope="module")
def _compile_once(compiled: Path) -> Iterator[None]:
    """Keeps compiled models in a cache on disk: many tests compile the same one, each time as a new function."""
    options = {
        "jax_compilation_cache_dir": str(compiled),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    before = {name: jax.config.values[name] for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def make_model(timm: ModuleType) -> Callable[..., Any]:
    """timm's model of a variant, with random values in every parameter, biases and norms included."""

    @functools.cache
    def make(name: str, num_classes: int = 10, in_chans: int = 3) -> Any:
        if timm.is_model(name):
            model = timm.create_model(name, num_classes=num_classes, in_chans=in_chans)
        else:
            model = make_timm(timm, variant_config(name), num_classes, in_chans)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
                else:
                    fan_in = parameter[0].numel()
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
        return model.eval()

    return make


@pytest.fixture
def mini_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variant of the models of tests/support/saving.py."""
    monkeypatch.setitem(VARIANTS, NAME, SVT)


@pytest.fixture(scope="session")
def tiny(make_model: Callable[..., Any]) -> dict[str, Any]:
    """The state dict of a tiny classifier of 10 classes. Not to be changed."""
    return make_model("twins_svt_tiny").state_dict()


@pytest.fixture(scope="session")
def dense(tiny: dict[str, Any]) -> dict[str, Any]:
    """A state dict as upstream's segmentation writes them: stage norms, left-overs of a classifier, and a head."""
    generator = torch.Generator().manual_seed(1)
    state = {f"backbone.{name}": tensor for name, tensor in tiny.items()}
    for stage, dim in enumerate(variant_config("twins_svt_tiny").embed_dims):
        state[f"backbone.norm_list.{stage}.weight"] = 1 + 0.1 * torch.randn(dim, generator=generator)
        state[f"backbone.norm_list.{stage}.bias"] = 0.1 * torch.randn(dim, generator=generator)
    state["decode_head.conv_seg.weight"] = torch.ones(150, 8, 1, 1)
    state["decode_head.bn.num_batches_tracked"] = torch.tensor(5)
    return state


@pytest.fixture(scope="session")
def tiny_pth(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.pth"
    torch.save(tiny, path)
    return path


@pytest.fixture(scope="session")
def tiny_orbax(tiny_pth: Path) -> Path:
    import port_weights

    folder = tiny_pth.with_name("orbax")
    assert port_weights.main([str(tiny_pth), str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def small_segmenters() -> Iterator[None]:
    """The variant "mini", and UPerNet's heads with few channels."""
    from tests.support.segmenter_files import small_segmenters

    yield from small_segmenters()


@pytest.fixture(scope="module")
def make_state(small_segmenters: None) -> Callable[[str], dict[str, Any]]:  # noqa: ARG001 - the model has its sizes
    """A segmenter's state dict whose names of heads come from no table of ours."""
    from tests.support.segmenter_files import random_state

    made = functools.cache(random_state)
    return lambda head: {name: tensor.clone() for name, tensor in made(head).items()}


@pytest.fixture(scope="module")
def fpn(make_state: Callable[[str], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of Semantic FPN as mmcv's runner writes it, with all that upstream's have beside the weights."""
    from tests.support.segmenter_files import save_as_mmcv

    return save_as_mmcv(make_state("semantic_fpn"), tmp_path_factory.mktemp("fpn") / "fpn.pth")


@pytest.fixture(scope="module")
def upernet(make_state: Callable[[str], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.segmenter_files import save_as_mmcv

    return save_as_mmcv(make_state("upernet"), tmp_path_factory.mktemp("upernet") / "upernet.pth")
