"""A classifier of 1000 classes with random weights, as timm's model and as a file of it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import pytest
import safetensors.numpy

from tests.support.compilation import fast_compilation
from tests.support.images import picture, saved
from tests.support.timm_twins import make_timm
from twins_jax.config import variant_config

SIZE = 64
MEAN, STD = [0.5, 0.45, 0.4], [0.25, 0.2, 0.3]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the cache of `_compile_once`."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(autouse=True, scope="module")
def _compile_once(compiled: Path) -> Iterator[None]:
    """Compiles fast, and keeps what is compiled on disk, in a cache that the command leaves as it is."""
    options = {
        "jax_default_matmul_precision": "float32",
        "jax_compilation_cache_dir": str(compiled),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    before = {name: jax.config.values[name] for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    with fast_compilation():
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax.clear_caches()


@pytest.fixture(scope="session")
def timm_model(timm: ModuleType) -> Any:
    """timm's module of twins_svt_tiny whose logits differ from image to image by more than their rounding."""
    import torch

    model = make_timm(timm, variant_config("twins_svt_tiny"), num_classes=1000)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.mul_(parameter.ndim == 1).add_(scale * torch.randn(parameter.shape, generator=generator))
        model.head.weight.mul_(3)
    return model.eval()


@pytest.fixture(scope="session")
def weights(timm_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot's folder: timm's weights, for images of 64 pixels."""
    folder = tmp_path_factory.mktemp("weights") / "snapshot"
    folder.mkdir()
    tensors = {name: tensor.numpy() for name, tensor in timm_model.state_dict().items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    config = {
        "architecture": "twins_svt_tiny",
        "num_classes": 1000,
        "pretrained_cfg": {"input_size": [3, SIZE, SIZE], "crop_pct": 0.9, "mean": MEAN, "std": STD},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def own_weights(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with class names of the user's own."""
    folder = tmp_path_factory.mktemp("own") / "snapshot"
    shutil.copytree(weights, folder)
    config = json.loads((weights / "config.json").read_text())
    config["label_names"] = [f'<Käse {label}> & "Öl"' for label in range(1000)]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with three pictures, one of them in a folder below."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(saved(picture(90, 70, 1), "JPEG"))
    (folder / "b.PNG").write_bytes(saved(picture(60, 130, 2), "PNG"))
    (folder / "more" / "c.webp").write_bytes(saved(picture(80, 80, 3), "WEBP"))
    return folder
