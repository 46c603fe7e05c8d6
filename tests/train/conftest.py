import contextlib
import dataclasses
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

import train.flops
import train.loop
from tests.support import runs, short
from tests.support.alone import PLAN, Alone, RunMain, call_main
from tests.support.checkpoints import save
from tests.support.compilation import fast_compilation
from train.config import RunConfig
from train.experiment import Experiment, build
from train.flops import Performance, describe, loss_flops, matmul_rate


@pytest.fixture(scope="module", autouse=True)
def _fast_compilation() -> Iterator[None]:
    """Compiling takes most of the time of these tests, and none is of the speed of a program."""
    with fast_compilation():
        yield


@pytest.fixture(scope="module", autouse=True)
def _described_without_measuring() -> Iterator[None]:
    """`alone` counts and measures, and test_run.py looks at what it found."""
    with pytest.MonkeyPatch.context() as patch:
        short.describe_without_measuring(patch.setattr)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_user() -> Iterator[None]:
    """Runs keep programs where the tests say, or nowhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.loop, "compilation_cache", contextlib.nullcontext)
        yield


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `compile_cache`, and of processes that tests start: one for all pytest workers."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"


@pytest.fixture(scope="module")
def compile_cache(compiled: Path) -> Iterator[Path]:
    """Programs that one run compiles serve the others; not in all modules: small programs take longer with it."""
    with cached_in(compiled):
        yield compiled


@contextlib.contextmanager
def cached_in(folder: Path) -> Iterator[None]:
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": runs.MIN_COMPILE_SECONDS,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def arguments() -> list[str]:
    return [*runs.ARGUMENTS, *PLAN, "--model.name", short.NAME, "--distributed.mode", "off"]


@pytest.fixture(scope="module")
def short_variant() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(short.VARIANTS, short.NAME, short.CONFIG)
        yield


@pytest.fixture(scope="session")
def alone(arguments: list[str], compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    workdir = tmp_path_factory.mktemp("alone") / "run"
    built: list[Experiment] = []
    described: list[Performance] = []

    def keep(config: RunConfig) -> Experiment:
        built.append(build(config))
        return built[0]

    def keep_description(experiment: Experiment) -> Performance:
        described.append(describe(experiment))
        return described[0]

    with pytest.MonkeyPatch.context() as patch, cached_in(compiled):
        patch.setitem(short.VARIANTS, short.NAME, short.CONFIG)
        patch.setattr(train.loop, "build", keep)
        patch.setattr(train.flops, "loss_flops", loss_flops)
        patch.setattr(train.flops, "matmul_rate", matmul_rate)
        patch.setattr(train.flops, "describe", keep_description)
        code, output, errors = call_main([*arguments, "--workdir", str(workdir)])
    assert code == 0, errors
    return Alone(workdir, output, errors, built[0], described[0])


@pytest.fixture
def run_main(arguments: list[str], alone: Alone, compile_cache: Path) -> RunMain:
    """Runs in this process: (workdir, further arguments) -> exit code, stdout, stderr."""
    del alone, compile_cache  # the first has compiled the same program, which the other holds
    return lambda workdir, *more: call_main([*arguments, "--workdir", str(workdir), *more])


@pytest.fixture
def rerun(run_main: RunMain, alone: Alone, monkeypatch: pytest.MonkeyPatch) -> RunMain:
    """As `run_main`, without building and measuring again; for runs that go on from a checkpoint's weights.

    `build` is what builds instead.
    """

    def built(config: RunConfig) -> Experiment:
        return dataclasses.replace(alone.built, config=config)

    def run(workdir: Path, *more: str, build: Callable[[RunConfig], Experiment] = built) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            patch.setattr(train.loop, "build", build)
            patch.setattr(train.flops, "describe", lambda _: alone.performance)
            return run_main(workdir, *more)

    return run


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in three class folders, six images to train and three to evaluate."""
    root = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 1)):
        for name in ("a", "b", "c"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def encoded(pixels: np.ndarray, file_format: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format)
    return file.getvalue()


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    return encoded


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 images in train/ and 11 in val/, 3 classes; the red channel is the image's number, the others are noise."""
    root = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 11)):
        for number in range(count):
            pixels = rng.integers(0, 256, (9, 12, 3), np.uint8)
            pixels[..., 0] = number
            path = root / split / f"class{number * 3 // count}" / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(pixels))
    return root


@pytest.fixture(scope="session")
def three_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("three")
    assert save(workdir, {1: 0.1, 2: 0.2, 3: 0.3}, keep=3) == [1, 2, 3]
    return workdir


@pytest.fixture
def workdir(three_checkpoints: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(three_checkpoints, tmp_path / "copy"))
