"""Weights of a whole run on digits: evaluated, started from, and taken to PyTorch and back."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from flax import nnx, traverse_util
from safetensors.numpy import load_file, save_file

import port_weights
import twins_jax
from tests.support.alone import STEPS, Alone, RunMain, last_line
from train.main import parse
from train.task import DatasetInfo
from twins_jax import InputError
from twins_jax.port.read import read_weights

pytestmark = pytest.mark.usefixtures("short_variant")


@pytest.fixture(scope="module")
def ported(alone: Alone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's weights as a PyTorch file."""
    path = tmp_path_factory.mktemp("ported") / "weights.safetensors"
    assert port_weights.main([str(alone.workdir), str(path)]) == 0
    return path


@pytest.mark.parametrize("from_init", [False, True], ids=["workdir", "init"])
def test_evaluation_only(
    from_init: bool,
    alone: Alone,
    ported: Path,
    run_main: RunMain,
    tmp_path: Path,
) -> None:
    workdir = tmp_path / "none" if from_init else alone.workdir
    more = ("--init", str(ported), "--optim.ema_decay", "0") if from_init else ()
    before = sorted(alone.workdir.rglob("*"))
    code, output, _ = run_main(workdir, "--eval_only", *more)
    assert code == 0
    final = last_line(output)
    expected = {name: value for name, value in alone.final.items() if not (from_init and name.startswith("ema"))}
    assert final == expected | {"step": 0 if from_init else STEPS}
    assert sorted(alone.workdir.rglob("*")) == before
    assert not (tmp_path / "none").exists()


def test_init_replaces_the_head_for_other_classes(alone: Alone, ported: Path, arguments: list[str]) -> None:
    trained = alone.saved
    for classes in (10, 3):
        info = DatasetInfo(classes, ("",) * classes, 1442, 355)
        model = parse([*arguments, "--init", str(ported)]).make_task(info).create_model(nnx.Rngs(0))
        params = traverse_util.flatten_dict(twins_jax.get_params(model), sep="/")
        assert params["head/kernel"].shape == (64, classes)
        for name, value in params.items():
            if not name.startswith("head/") or classes == 10:
                np.testing.assert_array_equal(value, trained[f"params/{name}"], err_msg=name)
    fresh = np.asarray(params["head/kernel"])
    assert 0.01 < fresh.std() < 0.03  # trunc-normal of 0.02
    assert not np.asarray(params["head/bias"]).any()


def test_init_with_other_classes_is_not_evaluated(
    ported: Path, digits_folder: Path, run_main: RunMain, tmp_path: Path
) -> None:
    folder = ("--data.source", "folder", "--data.dir", str(digits_folder), "--optim.ema_decay", "0")
    code, output, errors = run_main(tmp_path / "run", "--eval_only", "--init", str(ported), *folder)
    assert (code, "final" in output) == (2, False)
    assert errors == f"error: init={str(ported)!r}: must be of 3 classes, as the data: found 10\n"


@pytest.mark.parametrize("more", [[], ["--eval_only"]])
def test_init_of_gray_images(more: list[str], ported: Path, arguments: list[str], tmp_path: Path) -> None:
    weights = load_file(ported)
    weights["patch_embeds.0.proj.weight"] = weights["patch_embeds.0.proj.weight"][:, :1].copy()
    save_file(weights, tmp_path / "gray.safetensors")
    task = parse([*arguments, *more, "--init", str(tmp_path / "gray.safetensors")]).make_task()
    with pytest.raises(InputError, match=r"^init='.*': must be of images with 3 channels, as the data: found 1$"):
        task.create_model(nnx.Rngs(0))


def test_init_of_another_variant(ported: Path, run_main: RunMain, tmp_path: Path) -> None:
    code, _, errors = run_main(tmp_path / "run", "--init", str(ported), "--model.name", "twins_svt_small")
    assert code == 2
    assert errors.startswith("error: ")
    assert "twins_svt_small" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: shutil.rmtree(root / "val" / "b"), None),  # a class without evaluation images is no error
        (lambda root: shutil.rmtree(root / "train" / "b"), r"error: .*/val/b: class 'b' is not among the classes"),
        (lambda root: (root / "val" / "b" / "0.png").unlink(), r"error: .*/val/b: holds no image"),
        (lambda root: (root / "val" / "b" / "0.png").write_bytes(b"\x89PNG"), r"error: .*/val/b/0.png: not a readable"),
    ],
)
def test_bad_images(
    damage: Callable[[Path], Any],
    message: str | None,
    ported: Path,
    digits_folder: Path,
    run_main: RunMain,
    tmp_path: Path,
) -> None:
    weights = load_file(ported)
    weights |= {name: weights[name][:3] for name in ("head.weight", "head.bias")}
    save_file(weights, tmp_path / "three.safetensors")
    root = Path(shutil.copytree(digits_folder, tmp_path / "data"))
    damage(root)
    more: Sequence[str] = ("--data.source", "folder", "--data.dir", str(root), "--optim.ema_decay", "0")
    code, output, errors = run_main(
        tmp_path / "run", "--eval_only", "--init", str(tmp_path / "three.safetensors"), *more
    )
    if message is None:
        assert (code, last_line(output)["examples"]) == (0, 2)
    else:
        assert code == 2
        assert re.search(rf"^{message}.*\n$", errors)


@pytest.mark.parametrize("ema", [False, True])
def test_trained_weights_go_to_pytorch_and_back(alone: Alone, timm: ModuleType, tmp_path: Path, ema: bool) -> None:
    """As files that timm's model agrees with, and bit for bit as in the checkpoint."""
    del timm  # --verify compares with it
    flags = ["--ema"] if ema else []
    torch_file, orbax = str(tmp_path / "timm.safetensors"), str(tmp_path / "orbax")
    assert port_weights.main([str(alone.workdir), torch_file, "--verify", *flags]) == 0
    assert port_weights.main([torch_file, orbax]) == 0
    item = "ema/" if ema else "params/"
    expected = {name.removeprefix(item): leaf for name, leaf in alone.saved.items() if name.startswith(item)}
    actual = read_weights(orbax).tensors
    assert actual.keys() == expected.keys()
    assert all(np.array_equal(actual[name], expected[name]) for name in actual)


def test_changed_values_are_not_ported(alone: Alone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed checksum stands for changed parameters: a reader cannot tell the two apart."""
    checkpoint = Path(shutil.copytree(alone.workdir / "checkpoints" / str(STEPS), tmp_path / "16"))
    metadata = json.loads((checkpoint / "_CHECKPOINT_METADATA").read_text())
    metadata["custom_metadata"]["checksums"]["params"] ^= 1
    (checkpoint / "_CHECKPOINT_METADATA").write_text(json.dumps(metadata))
    assert port_weights.main([str(checkpoint), str(tmp_path / "a.safetensors")]) == 2
    expected = f"error: {checkpoint}/params: damaged: its values are not those that training saved\n"
    assert capsys.readouterr().err == expected
    assert port_weights.main([str(checkpoint), str(tmp_path / "a.safetensors"), "--ema"]) == 0


def test_init_is_evaluated_and_not_what_the_folder_holds(alone: Alone, run_main: RunMain) -> None:
    code, output, _ = run_main(alone.workdir, "--eval_only", "--init", str(alone.workdir / "checkpoints" / "4" / "ema"))
    assert (code, last_line(output)["step"]) == (0, 0)
    assert last_line(output)["loss"] != alone.final["loss"]
