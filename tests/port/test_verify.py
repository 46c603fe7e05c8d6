"""--verify: damage is traced to its stage, and the report says so in every form."""

import json

import numpy as np
import pytest
import torch

import port_weights
import twins_jax
from twins_jax.backbone import TwinsBackbone
from twins_jax.errors import InputError
from twins_jax.port import timm_models
from twins_jax.port import verify as verify_module
from twins_jax.port.read import read_weights
from twins_jax.port.safetensors_io import read_safetensors, write_safetensors
from twins_jax.port.verify import Comparison, Input, verify

SMALL = (Input(1, 64, 96), Input(2, 33, 40))
ONE = SMALL[:1]


@pytest.fixture
def small_inputs(monkeypatch):
    original = verify_module.verify
    monkeypatch.setattr(verify_module, "verify", lambda *args, **kwargs: original(*args, **kwargs, inputs=SMALL))


def run(*arguments):
    return port_weights.main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("backbone/stages/0/patch_embed/proj/kernel", "stage 1"),
        ("backbone/stages/1/peg/bias", "stage 2"),
        ("backbone/stages/2/blocks/1/attn/sub_sample/kernel", "stage 3"),
        ("backbone/stages/2/blocks/0/attn/qkv/bias", "stage 3"),
        ("backbone/stages/3/blocks/1/mlp/fc2/kernel", "stage 4"),
        ("norm/scale", "logits"),
        ("head/bias", "logits"),
    ],
)
def test_damage_is_traced_to_its_stage(tiny_pth, tmp_path, path, stage):
    target = tmp_path / "ours.safetensors"
    assert run(tiny_pth, target) == 0
    tensors = {name: np.array(tensor) for name, tensor in read_safetensors(str(target)).items()}
    tensors[path].flat[3] += 1e-2
    write_safetensors(str(target), tensors, framework="jax")
    report = verify(read_weights(tiny_pth), twins_jax.from_pretrained(target), inputs=ONE)
    assert not report.holds
    assert report.first_difference == stage


@pytest.mark.usefixtures("small_inputs")
def test_both_directions_hold_and_are_reported(tiny_pth, tmp_path, capsys):
    there, back, report = tmp_path / "orbax", tmp_path / "back.safetensors", tmp_path / "report.json"
    assert run(tiny_pth, there, "--verify", "--report", report) == 0
    text = capsys.readouterr().out
    assert "top-1 agreement: 100.0%" in text
    assert "holds" in text
    found = json.loads(report.read_text())
    assert (found["model"], found["holds"], found["first_difference"]) == ("twins_svt_tiny", True, None)
    names = ["stage 1", "stage 2", "stage 3", "stage 4", "logits"]
    assert [row["output"] for row in found["outputs"]] == names
    assert [Input(batch["batch"], batch["height"], batch["width"]) for batch in found["inputs"]] == list(SMALL)
    for i, row in enumerate(found["outputs"]):
        assert 0 < row["our_error"] <= 2 * row["pytorch_error"] < 1e-5
        assert row["our_error"] == max(batch["outputs"][i]["our_error"] for batch in found["inputs"])
    assert run(there, back, "--verify") == 0


@pytest.mark.usefixtures("small_inputs")
def test_a_difference_is_exit_code_1(monkeypatch, tiny_pth, tmp_path, capsys):
    original = twins_jax.pretrained.model_from_pretrained

    def damaged(*args, **kwargs):
        model = original(*args, **kwargs)
        bias = model.backbone.stages[1].blocks[0].mlp.fc1.bias
        bias[...] = bias[...].at[0].add(0.01)
        return model

    monkeypatch.setattr(twins_jax.pretrained, "model_from_pretrained", damaged)
    report = tmp_path / "report.json"
    assert run(tiny_pth, tmp_path / "orbax", "--verify", "--report", report) == 1
    assert "fails: the two part at stage 2" in capsys.readouterr().out
    assert json.loads(report.read_text())["first_difference"] == "stage 2"


def norm_copies(backbone, images, *, rngs=None):
    """Stage norms of the wrong kind: the next stage reads the map before its norm."""
    maps, x = [], images
    for norm, stage in zip(backbone.norms, backbone.stages, strict=True):
        x = stage(x, rngs)
        maps.append(norm(x))
    return tuple(maps)


@pytest.fixture(scope="module")
def dense_pth(dense, tmp_path_factory):
    path = tmp_path_factory.mktemp("dense") / "dense.pth"
    torch.save({"state_dict": dense}, path)
    return path


@pytest.mark.usefixtures("small_inputs")
def test_dense_checkpoints_both_ways(monkeypatch, dense_pth, tmp_path, capsys):
    there, back = tmp_path / "orbax", tmp_path / "back.safetensors"
    assert run(dense_pth, there, "--verify") == 0
    text = capsys.readouterr().out
    assert [line[:7] for line in text.splitlines() if line.startswith("stage")] == [f"stage {i}" for i in (1, 2, 3, 4)]
    assert "top-1" not in text
    assert run(there, back, "--verify") == 0

    monkeypatch.setattr(TwinsBackbone, "__call__", norm_copies)
    assert run(dense_pth, tmp_path / "other", "--verify") == 1
    assert "fails: the two part at stage 2" in capsys.readouterr().out


def test_dense_checkpoints_with_masks(dense_pth):
    """The first of the maps 14x25, 7x12, 3x6 and 1x3 that "mask" masks is the third."""
    sizes = [Input(1, 56, 100)]
    weights = read_weights(dense_pth)
    masking = twins_jax.backbone_from_pretrained(dense_pth, window_padding="mask")
    report = verify(weights, masking, inputs=sizes)
    assert report.holds, report.to_text()
    for stage in masking.stages:
        for block in stage.blocks[::2]:
            block.attn.window_padding = "zero"
    assert verify(weights, masking, inputs=sizes).first_difference == "stage 3"


def test_dense_checkpoints_without_norms(dense, tmp_path):
    torch.save({name: tensor for name, tensor in dense.items() if "norm_list" not in name}, tmp_path / "a.pth")
    report = verify(
        read_weights(tmp_path / "a.pth"), twins_jax.backbone_from_pretrained(tmp_path / "a.pth"), inputs=ONE
    )
    assert report.holds, report.to_text()
    assert len(report.comparisons) == 4


def test_models_of_two_kinds_are_not_compared(tiny_pth):
    with pytest.raises(InputError, match="holds a classifier, which a TwinsBackbone cannot be compared with"):
        verify(read_weights(tiny_pth), twins_jax.backbone_from_pretrained(tiny_pth))


def test_half_precision_weights_are_verified_in_float32(tiny, tmp_path):
    torch.save({name: tensor.half() for name, tensor in tiny.items()}, tmp_path / "a.pth")
    assert run(tmp_path / "a.pth", tmp_path / "orbax") == 0
    model = twins_jax.from_pretrained(tmp_path / "orbax")
    assert verify(read_weights(tmp_path / "a.pth"), model, inputs=ONE).holds


def test_nan_never_holds():
    assert not Comparison("logits", 1e-7, float("nan")).holds
    assert Comparison("logits", 1e-7, 1.9e-7).holds
    assert not Comparison("logits", 1e-7, 2.1e-7).holds
    assert Comparison("logits", 0.0, 1e-7).holds  # PyTorch exact by luck


def test_without_timm_nothing_is_written(monkeypatch, tiny_pth, tmp_path, capsys):
    def fail():
        raise InputError("timm cannot be imported")

    monkeypatch.setattr(timm_models, "import_timm", fail)
    assert run(tiny_pth, tmp_path / "orbax", "--verify") == 2
    assert capsys.readouterr().err == "error: timm cannot be imported\n"
    assert not list(tmp_path.iterdir())


def test_verify_needs_one_side_in_pytorch(tiny_orbax, tmp_path, capsys):
    assert run(tiny_orbax, tmp_path / "orbax", "--verify") == 2
    assert "neither SRC nor DST" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small_inputs")
def test_the_chosen_one_of_two_models_is_verified(tiny_pth, tmp_path):
    ours, both = tmp_path / "ours.safetensors", tmp_path / "both.safetensors"
    assert run(tiny_pth, ours) == 0
    tensors = {name: np.array(tensor) for name, tensor in read_safetensors(str(ours)).items()}
    student = {f"student/{name}": np.zeros_like(tensor) for name, tensor in tensors.items()}
    write_safetensors(str(both), student | {f"teacher/{n}": t for n, t in tensors.items()}, framework="jax")
    assert run(both, tmp_path / "back.safetensors", "--prefix", "teacher", "--verify") == 0
