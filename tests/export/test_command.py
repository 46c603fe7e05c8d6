"""`python -m twins_jax.export`: from a file of PyTorch's weights to the artefact, and what it refuses."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

import twins_jax
from tests.export.conftest import names_in
from tests.support import short
from tests.support.models import classifier, named, random_array, relative_error
from tests.support.timm_twins import make_timm
from twins_jax.config import VARIANTS
from twins_jax.export import export
from twins_jax.export.__main__ import main
from twins_jax.export.comparison import Comparison


def run(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def pytorch(timm: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """timm's model of the variant "short", and a file of its weights."""
    import torch
    from safetensors.torch import save_file

    from tests.parity.reference import randomize

    torch.manual_seed(0)
    model = randomize(make_timm(timm, short.CONFIG))
    path = tmp_path_factory.mktemp("pytorch") / "short.safetensors"
    save_file(model.state_dict(), path)
    return model, path


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, short.NAME, short.CONFIG)


@pytest.mark.usefixtures("_unchecked")
def test_an_artefact_of_pytorchs_weights_is_pytorchs_model(
    pytorch: tuple[Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    theirs, weights = pytorch
    path = tmp_path / "short.jax"
    assert run(weights, path, "--image_size", 64) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert "short: images float32 [batch, 64, 64, 3]" in output
    assert "logits float32 [batch, 10]: differs from the model's by " in output
    assert names_in(tmp_path) == ["short.jax", "short.jax.json"]
    assert json.loads((tmp_path / "short.jax.json").read_text())["architecture"] == "short"
    images = random_array(3, 64, 64, 3)
    with torch.no_grad():
        truth = theirs.double()(torch.from_numpy(images).permute(0, 3, 1, 2).double()).numpy()
    assert relative_error(jax.export.deserialize(bytearray(path.read_bytes())).call(images), truth) < 2e-6


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of this project's names, in a folder that is otherwise empty."""
    file = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(named(twins_jax.get_params(classifier(short.CONFIG))), file)
    return file


@pytest.mark.parametrize(
    ("arguments", "input_shape", "outputs"),
    [
        ((), ["batch", 224, 224, 3], [["batch", 10]]),
        (("--outputs", "features", "--batch_size", 2, "--image_size", "40x72"), [2, 40, 72, 3], [[2, 64]]),
        (
            ("--outputs", "maps", "--image_size", 64, "--dtype", "bfloat16"),
            ["batch", 64, 64, 3],
            [["batch", 64 // s, 64 // s, c] for s, c in ((4, 16), (8, 32), (16, 48), (32, 64))],
        ),
    ],
    ids=["logits", "features", "maps"],
)
@pytest.mark.usefixtures("_unchecked")
def test_the_kinds_of_models(
    weights: Path, arguments: tuple[Any, ...], input_shape: list[Any], outputs: list[Any]
) -> None:
    path = weights.with_name("model.jax")
    assert run(weights, path, *arguments) == 0
    manifest = json.loads(Path(f"{path}.json").read_text())
    assert manifest["input"]["shape"] == input_shape
    assert [output["shape"] for output in manifest["outputs"]] == outputs
    assert {output["dtype"] for output in manifest["outputs"]} == {"bfloat16" if "--dtype" in arguments else "float32"}


@pytest.mark.parametrize(
    ("comparison", "message"),
    [
        (
            Comparison("logits", 1e-3, 1e-7),
            "its logits differ from the model's by 1.0e-03 of the largest; 4.8e-07 is allowed, 4 times the model's own "
            "rounding error",
        ),
        (
            Comparison("logits", float("nan"), float("nan")),
            "the model's logits are not all finite for random images, and cannot be compared with the file's",
        ),
    ],
)
def test_a_difference_is_exit_code_1(
    weights: Path,
    comparison: Comparison,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(export, "compare", lambda *_: [comparison])
    path = weights.with_name("model.jax")
    assert run(weights, path, "--image_size", 64) == 1
    assert capsys.readouterr().err == f"error: {path}: not written: {message}\n"
    assert names_in(weights.parent) == [weights.name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("weights.safetensors", "model.pb"), "model.pb: must end in .jax (StableHLO, for JAX) or .onnx"),
        (("weights.safetensors", "model"), "model: must end in .jax (StableHLO, for JAX) or .onnx"),
        (("weights.safetensors", ".jax"), ".jax: must end in"),
        (("weights.safetensors", "folder/"), "DST='folder': must be the path of a file"),
        (("weights.safetensors", "absent/model.jax"), "absent/model.jax: its folder"),
        (("weights.safetensors", "old.jax"), "old.jax: exists already"),
        (("old.jax", "old.jax", "--overwrite"), "old.jax: is given twice"),
        (("absent.pth", "model.jax"), "absent.pth: "),
        (("weights.safetensors", "model.jax", "--image_size", "31"), "image_size=31: must be None, an integer from 32"),
        (("weights.safetensors", "model.jax", "--image_size", "64x31"), "image_size=(64, 31): must be None"),
        (("weights.safetensors", "model.jax", "--image_size", "64x"), "argument --image_size: invalid"),
        (("weights.safetensors", "model.jax", "--batch_size", "0"), "batch_size=0: must be None, for any, or"),
        (("weights.safetensors", "model.jax", "--batchsize", "2"), "unknown flag '--batchsize'; did you mean"),
        (("weights.safetensors", "model.jax", "--model", "twins_svt_smal"), "name='twins_svt_smal': must be one of"),
        (("gray.safetensors", "model.jax", "--normalize"), "normalize=True: must be False where pixels are not RGB"),
    ],
)
def test_bad_input_is_one_line(
    weights: Path,
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(weights.parent)
    Path("old.jax").write_text("old")
    Path("folder").mkdir()
    if "gray.safetensors" in arguments:
        params = safetensors.numpy.load_file(weights)
        name = "backbone/stages/0/patch_embed/proj/kernel"
        safetensors.numpy.save_file(params | {name: np.ascontiguousarray(params[name][:, :, :1])}, arguments[0])
    before = names_in(weights.parent)
    try:
        code = run(*arguments)
    except SystemExit as error:  # argparse's way
        code = int(str(error.code))
    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert names_in(weights.parent) == before
    assert Path("old.jax").read_text() == "old"
