"""The files that port_weights.py reads and writes, with exact values."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.torch
import torch
from flax import traverse_util

import port_weights
import twins_jax
from twins_jax.errors import InputError
from twins_jax.port.convert import port
from twins_jax.port.read import read_weights

BACKBONE_LEFTOVERS = {"backbone.norm.weight", "backbone.norm.bias", "backbone.head.weight", "backbone.head.bias"}


def run(*arguments):
    return port_weights.main([str(argument) for argument in arguments])


def read_torch(path):
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    return torch.load(path, weights_only=True)


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("middle", ["orbax", "ours.safetensors"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_round_trip_from_pytorch_is_exact(tiny, tmp_path, dtype, middle, suffix):
    state = {name: tensor.to(dtype) for name, tensor in tiny.items()}
    source, back = tmp_path / f"source{suffix}", tmp_path / f"back{suffix}"
    (torch.save if suffix == ".pth" else safetensors.torch.save_file)(state, source)
    assert run(source, tmp_path / middle) == 0
    assert run(tmp_path / middle, back) == 0
    assert_same(read_torch(back), state)


@pytest.mark.parametrize(
    ("name", "load"),
    [
        *(("a.PTH", torch.load), ("a.Pt", torch.load), ("a.SafeTensors", safetensors.torch.load_file)),
        *(("a.ckpt", torch.load), ("a.pth.tar", torch.load)),
    ],
)
def test_the_ending_of_the_target_tells_its_format(tiny, tiny_orbax, tmp_path, name, load):
    assert run(tiny_orbax, tmp_path / name) == 0
    assert_same(load(tmp_path / name), tiny)


@pytest.mark.parametrize("middle", ["there.pth", "there.safetensors"])
def test_round_trip_from_ours_is_exact(tiny_orbax, tmp_path, middle):
    params = twins_jax.get_params(twins_jax.from_pretrained(tiny_orbax))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "ours", params)
    assert run(tmp_path / "ours", tmp_path / middle) == 0
    assert run(tmp_path / middle, tmp_path / "back") == 0
    with ocp.StandardCheckpointer() as checkpointer:
        back = checkpointer.restore(tmp_path / "back", params)
    expected, found = traverse_util.flatten_dict(params), traverse_util.flatten_dict(back)
    assert expected.keys() == found.keys()
    for path, value in expected.items():
        assert value.dtype == found[path].dtype, path
        np.testing.assert_array_equal(value, found[path])


def test_values_are_transposed_as_written(tiny, tiny_orbax):
    tensors = read_weights(tiny_orbax).tensors
    kernel = tensors["backbone/stages/1/blocks/1/attn/sub_sample/kernel"]
    weight = tiny["blocks.1.1.attn.sr.weight"].numpy()
    assert kernel[1, 3, 5, 7] == weight[7, 5, 1, 3]
    assert tensors["head/kernel"][5, 7] == tiny["head.weight"][7, 5]


@pytest.mark.parametrize(
    ("wrap", "flags"),
    [
        (lambda state: {"model": state, "epoch": 3}, []),
        (lambda state: {"state_dict": state, "meta": {"CLASSES": ("a", "b")}}, []),
        (lambda state: {"model_ema": state}, []),
        (lambda state: {"model": {"x": torch.ones(1)}, "model_ema": state}, ["--ema"]),
        (lambda state: {"state_dict": {"x": torch.ones(1)}, "state_dict_ema": state}, ["--ema"]),
        (lambda state: {f"module.{name}": tensor for name, tensor in state.items()}, []),
        (lambda state: {"model": {f"module.{name}": torch.nn.Parameter(value) for name, value in state.items()}}, []),
    ],
    ids=["model", "state_dict", "only-ema", "model_ema", "state_dict_ema", "ddp", "parameters"],
)
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_containers(tiny, tmp_path, wrap, flags, is_zip):
    torch.save(wrap(tiny), tmp_path / "a.pth", _use_new_zipfile_serialization=is_zip)
    assert run(tmp_path / "a.pth", tmp_path / "orbax", *flags) == 0
    assert run(tmp_path / "orbax", tmp_path / "back.pth") == 0
    assert_same(read_torch(tmp_path / "back.pth"), tiny)


@pytest.mark.parametrize(("num_classes", "in_chans"), [(0, 3), (7, 1), (1000, 12)])
def test_other_classes_and_channels(make_model, tmp_path, num_classes, in_chans):
    state = make_model("twins_svt_tiny", num_classes, in_chans).state_dict()
    torch.save(state, tmp_path / "a.bin")
    assert run(tmp_path / "a.bin", tmp_path / "orbax") == 0
    assert run(tmp_path / "orbax", tmp_path / "back.pth") == 0
    assert_same(read_torch(tmp_path / "back.pth"), state)
    model = twins_jax.from_pretrained(tmp_path / "orbax")
    assert (model.num_classes, model.config.in_channels) == (num_classes, in_chans)


def test_dense_checkpoint_becomes_a_backbone_and_names_the_rest(dense, tmp_path, capsys):
    torch.save({"state_dict": dense}, tmp_path / "a.pth")
    assert run(tmp_path / "a.pth", tmp_path / "orbax") == 0
    not_ported = BACKBONE_LEFTOVERS | {"decode_head.conv_seg.weight"}
    output = capsys.readouterr().out
    line = next(line for line in output.splitlines() if line.startswith("not ported: 5 tensors: "))
    assert set(line.removeprefix("not ported: 5 tensors: ").split(", ")) == not_ported
    assert "ignored: num_batches_tracked\n" in output
    not_ported.add("decode_head.bn.num_batches_tracked")
    assert run(tmp_path / "orbax", tmp_path / "back.pth") == 0
    assert_same(
        read_torch(tmp_path / "back.pth"), {name: tensor for name, tensor in dense.items() if name not in not_ported}
    )


def test_dense_checkpoint_with_an_unknown_backbone_tensor_is_refused(dense, tmp_path, capsys):
    torch.save(dense | {"backbone.gate.weight": torch.ones(3)}, tmp_path / "a.pth")
    assert run(tmp_path / "a.pth", tmp_path / "orbax") == 2
    assert "+ backbone.gate.weight (3,) is left over" in capsys.readouterr().err
    assert not (tmp_path / "orbax").exists()


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/20"])
def test_training_checkpoints(tiny_orbax, tmp_path, place, ema):
    flat = {path: jnp.asarray(array) for path, array in read_weights(tiny_orbax).tensors.items()}

    def tree(shift):
        return traverse_util.unflatten_dict({path: flat[path] + shift for path in flat}, sep="/")

    (tmp_path / "config.json").write_text("{}")  # a working directory's, not a snapshot's
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        for step in (3, 20):
            manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(tree(step)), ema=ocp.args.StandardSave(tree(-step))
                ),
            )
    (tmp_path / "checkpoints" / "30").mkdir()  # incomplete
    weights = read_weights(tmp_path / place, ema=ema)
    np.testing.assert_array_equal(weights.tensors["head/bias"], flat["head/bias"] + (-20 if ema else 20))
    assert run(tmp_path / place, tmp_path / "back.pth", *(["--ema"] if ema else [])) == 0
    if not ema:
        assert len(port(read_weights(tmp_path / "checkpoints/3/params")).params) == len(flat)


def test_ema_is_never_replaced_by_something_else(tiny_pth, tiny_orbax, tmp_path):
    safetensors.torch.save_file(torch.load(tiny_pth, weights_only=True), tmp_path / "a.safetensors")
    for source in (tiny_pth, tiny_orbax, tmp_path / "a.safetensors"):
        with pytest.raises(InputError, match=r"moving average|model_ema"):
            read_weights(source, ema=True)


@pytest.mark.parametrize("weights_file", ["model.safetensors", "pytorch_model.bin"])
def test_snapshot_folder(tiny, tmp_path, weights_file, capsys):
    write = safetensors.torch.save_file if weights_file.endswith("safetensors") else torch.save
    write(tiny, tmp_path / weights_file)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "twins_svt_tiny", "num_classes": 10}))
    assert run(tmp_path, tmp_path / "orbax") == 0
    for says, message in (({"architecture": "twins_svt_small"}, "architecture"), ({"num_classes": 9}, "num_classes")):
        (tmp_path / "config.json").write_text(json.dumps(says))
        assert run(tmp_path, tmp_path / "again") == 2
        assert f"config.json says {message}" in capsys.readouterr().err
    for damaged in ("{", "[]", "\x00", "[" * 100_000):
        (tmp_path / "config.json").write_text(damaged)
        assert run(tmp_path, tmp_path / "again") == 2
        assert "config.json" in capsys.readouterr().err


def test_hub_names_without_a_network(tiny, tmp_path):
    folder = tmp_path / "hub" / "models--timm--twins_tiny.test"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text(json.dumps({"architecture": "twins_svt_tiny"}))
    safetensors.torch.save_file(tiny, snapshot / "model.safetensors")
    pytest.importorskip("huggingface_hub")

    def port_in_subprocess(source, target):
        environment = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PATH": "", "HOME": str(tmp_path)}
        return subprocess.run(
            [sys.executable, Path(port_weights.__file__), source, target],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    found = port_in_subprocess("hf-hub:timm/twins_tiny.test", tmp_path / "back")
    assert found.returncode == 0, found.stderr
    assert run(tmp_path / "back", tmp_path / "back.pth") == 0
    assert_same(read_torch(tmp_path / "back.pth"), tiny)
    missing = port_in_subprocess("hf-hub:timm/other", tmp_path / "other")
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: hf-hub:timm/other: ")
    assert missing.stderr.count("\n") == 1


def test_content_decides_and_not_the_name(tiny, tmp_path):
    safetensors.torch.save_file(tiny, tmp_path / "a.pth")
    torch.save(tiny, tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        assert port(read_weights(tmp_path / name)).model.name == "twins_svt_tiny"


@pytest.mark.parametrize("first", range(0, 256, 8))
def test_a_safetensors_file_may_begin_as_a_pickle(tmp_path, first):
    """It begins with the length of its header: that of 0x80 is a pickle's first byte."""
    tensors, path = {"blocks.0.0.norm1.weight": torch.arange(3.0)}, tmp_path / "a.safetensors"
    for padding in range(0, 256, 8):
        safetensors.torch.save_file(tensors, path, metadata={"note": "x" * padding})
        if path.read_bytes()[0] == first:
            break
    assert path.read_bytes()[0] == first
    assert read_weights(path).tensors.keys() == tensors.keys()


def test_unknown_and_ambiguous_variants_say_what_they_look_like(tiny, make_model, tmp_path, capsys):
    torch.save({name: tensor for name, tensor in tiny.items() if not name.startswith("blocks.2")}, tmp_path / "a.pth")
    assert run("--inspect", tmp_path / "a.pth") == 2
    error = capsys.readouterr().err
    assert "it looks like depths (2, 2, 0, 2) and channels (32, 64, 128, 256) with LSA" in error
    state = make_model("twins_svt_small").state_dict()
    base = {name: tensor for name, tensor in state.items() if name.startswith("blocks.0")}
    for stage, depth in ((1, 2), (2, 18), (3, 2)):
        base |= {f"blocks.{stage}.{block}.attn.qkv.bias": torch.ones(3) for block in range(depth)}
    torch.save(base, tmp_path / "b.pth")
    assert run("--inspect", tmp_path / "b.pth") == 2
    error = capsys.readouterr().err
    assert "could be more than one Twins variant" in error
    assert "fitting are twins_svt_base: (2, 2, 18, 2)" in error
    assert "twins_svt_large" in error
    assert "twins_svt_small" not in error


def test_misfits_are_listed_together(tiny, tmp_path, capsys):
    state = dict(tiny)
    del state["norm.bias"]
    state["extra.weight"] = torch.ones(2)
    state["blocks.0.0.norm1.weight"] = torch.ones(5)
    state["blocks.0.0.norm1.bias"] = torch.ones(32, dtype=torch.int32)
    state["blocks.0.0.norm2.bias"] = torch.full((32,), float("nan"))
    torch.save(state, tmp_path / "a.pth")
    assert run(tmp_path / "a.pth", tmp_path / "orbax") == 2
    error = capsys.readouterr().err.splitlines()
    assert error[0] == f"error: {tmp_path / 'a.pth'}: 5 tensors do not fit twins_svt_tiny"
    assert sorted(error[1:]) == [
        "  ! blocks.0.0.norm1.bias has dtype int32, expected floating-point",
        "  ! blocks.0.0.norm1.weight has shape (5,), expected (32,)",
        "  ! blocks.0.0.norm2.bias holds NaN or infinity",
        "  + extra.weight (2,) is left over",
        "  - norm.bias (256,) is missing",
    ]


def test_model_name_must_fit(tiny_pth, tmp_path, capsys):
    assert run(tiny_pth, tmp_path / "orbax", "--model", "twins_svt_small") == 2
    assert "do not fit twins_svt_small" in capsys.readouterr().err
    assert run(tiny_pth, tmp_path / "orbax", "--model", "nonsense") == 2
    assert "name='nonsense': must be one of" in capsys.readouterr().err


def test_inspect(dense, tiny_pth, tmp_path, capsys):
    assert run("--inspect", tiny_pth) == 0
    text = capsys.readouterr().out
    count = sum(tensor.numel() for tensor in torch.load(tiny_pth, weights_only=True).values())
    for fact in ("twins_svt_tiny", f"{count:,}", "torch file", "float32", "timm or upstream classification", "10"):
        assert fact in text
    assert [line.split()[:2] for line in text.splitlines() if line.startswith("stage")] == [
        ["stage", str(stage)] for stage in (1, 2, 3, 4)
    ]
    torch.save({"model": dense}, tmp_path / "dense.pth")
    assert run("--inspect", tmp_path / "dense.pth") == 0
    text = capsys.readouterr().out
    for fact in ("twins_svt_tiny with stage norms", "no classifier", "under 'model'", "decode_head.conv_seg.weight"):
        assert fact in text
