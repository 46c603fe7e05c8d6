"""Sharded weights, folders with one checkpoint or several, and files that are no weights."""

import io
import json
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from flax import serialization

import port_weights
from twins_jax.errors import InputError
from twins_jax.port.convert import port
from twins_jax.port.folder import find_checkpoint
from twins_jax.port.orbax_io import write_params
from twins_jax.port.read import read_weights

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def npz():
    file = io.BytesIO()
    np.savez(file, **{"backbone/stages/0/blocks/0/attn/proj/kernel": np.ones(1)})
    return file.getvalue()


def refusal(source, **options):
    with pytest.raises(InputError) as error:
        read_weights(source, **options)
    return str(error.value)


@pytest.fixture
def shards(tiny, tmp_path):
    """Writes the tiny classifier in two parts, with changes to the index and to the parts."""

    def write(save=safetensors.torch.save_file, suffix="safetensors", folder=tmp_path):
        names = list(tiny)
        parts = {f"model-0000{part + 1}-of-00002.{suffix}": names[part::2] for part in (0, 1)}
        for part, held in parts.items():
            save({name: tiny[name].contiguous() for name in held}, folder / part)
        index = {"metadata": {"total_size": 1}, "weight_map": {name: part for part in parts for name in parts[part]}}
        (folder / f"model.{suffix}.index.json").write_text(json.dumps(index))
        return index

    return write


@pytest.mark.parametrize(("suffix", "save"), [("safetensors", safetensors.torch.save_file), ("bin", torch.save)])
def test_sharded_weights(shards, tiny, tmp_path, suffix, save):
    shards(save, suffix)
    for source in (tmp_path, tmp_path / f"model.{suffix}.index.json"):
        weights = read_weights(source)
        assert weights.container == "sharded weights"
        assert weights.tensors.keys() == tiny.keys()
        assert all(np.array_equal(weights.tensors[name], tensor) for name, tensor in tiny.items())
    assert port_weights.main([str(tmp_path), str(tmp_path / "orbax")]) == 0


def test_shards_that_are_missing_or_too_many_are_named(shards, tmp_path):
    shards()
    (tmp_path / SECOND).rename(tmp_path / "model-00003-of-00003.safetensors")
    (tmp_path / "other-00001-of-00001.safetensors").write_bytes(b"")  # of another checkpoint
    assert refusal(tmp_path / INDEX).splitlines() == [
        f"{tmp_path / INDEX}: 2 files are not as it says",
        f"  - {SECOND} is missing",
        "  + model-00003-of-00003.safetensors is no part of the index",
    ]


def test_tensors_that_are_in_other_shards_are_named(shards, tiny, tmp_path):
    index = shards()
    first, second, third, *_ = tiny
    held = {name: tiny[name] for name, part in index["weight_map"].items() if part == FIRST and name != first}
    safetensors.torch.save_file(held | {second: tiny[second], "extra": torch.ones(1)}, tmp_path / FIRST)
    assert refusal(tmp_path / INDEX).splitlines() == [
        f"{tmp_path / INDEX}: 3 tensors are not where it says",
        f"  + extra is in {FIRST}, but not in the index",
        f"  ! {second} is in {FIRST} and in {SECOND}",
        f"  - {first} is not in {FIRST}",
    ]
    assert third in held


@pytest.mark.parametrize("part", ["../secret.safetensors", "/etc/passwd", "a/b", "..", "", "C:\\x", "a\0b"])
def test_an_index_that_leaves_its_folder_is_refused(tmp_path, part):
    (tmp_path / "run").mkdir()
    (tmp_path / "secret.safetensors").write_bytes(safetensors.torch.save({"a": torch.ones(1)}))
    path = tmp_path / "run" / INDEX
    path.write_text(json.dumps({"weight_map": {"a": part}}))
    assert refusal(path) == f"{path}: refused, it names {part!r}: must be a file beside the index"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a readable index of weights: Expecting property name"),
        ("{}", "no index of weights: has no 'weight_map' from tensors to files"),
        ('{"weight_map": {}}', "no index of weights: has no 'weight_map' from tensors to files"),
        ('{"weight_map": {"a": 1}}', "no index of weights: has no 'weight_map' from tensors to files"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "not a readable index of weights: 'a' stands in it twice"),
        ('{"weight_map": {"a": "model.safetensors.index.json"}}', "must be a .safetensors file or one of torch.save"),
        ('{"a":' * 100_000, "not a readable index of weights: maximum recursion depth"),
    ],
)
def test_an_index_that_is_none(tmp_path, text, message):
    (tmp_path / INDEX).write_text(text)
    assert refusal(tmp_path / INDEX).startswith(f"{tmp_path / INDEX}: {message}")


@pytest.mark.parametrize("name", ["epoch_3.pth", "weights", "best.safetensors", "flax_model", "final", "legacy"])
def test_a_folder_s_one_checkpoint_is_taken_whatever_its_name(tiny, tiny_orbax, tmp_path, name):
    (tmp_path / "train.log").write_text("loss 0.1")
    (tmp_path / "metrics.npz").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as archive:
        archive.writestr("train.py", "pass")
    (tmp_path / "results.pkl").write_bytes(b"\x80\x04]\x94.")
    if name == "final":
        write_params(str(tmp_path / name), dict(read_weights(tiny_orbax).tensors))
    elif name == "legacy":
        torch.save(tiny, tmp_path / name, _use_new_zipfile_serialization=False)
    elif name == "flax_model":
        (tmp_path / name).write_bytes(serialization.to_bytes({k: v.numpy() for k, v in tiny.items()}))
    else:
        save = safetensors.torch.save_file if name.endswith(".safetensors") else torch.save
        save(tiny, tmp_path / name)
    assert find_checkpoint(str(tmp_path)).path == str(tmp_path / name)
    assert port(read_weights(tmp_path)).model.name == "twins_svt_tiny"


def test_a_folder_of_several_checkpoints_lists_them(tmp_path):
    for name in ("epoch_1.pth", "epoch_2.pth"):
        torch.save({}, tmp_path / name)
    for name in ("run_a", "run_b"):
        write_params(str(tmp_path / name), {"a": np.ones(1, np.float32)})
    (tmp_path / "best.safetensors").write_bytes(safetensors.torch.save({"a": torch.ones(1)}))
    assert refusal(tmp_path) == (
        f"{tmp_path}: holds 5 checkpoints: name one of them: best.safetensors, epoch_1.pth, epoch_2.pth, run_a, run_b"
    )
    for number in range(20):
        torch.save({}, tmp_path / f"more_{number}.pth")
    assert refusal(tmp_path).endswith(" and 15 more")


def test_a_checkpoint_of_several_trees(tiny_orbax, tmp_path):
    tensors = read_weights(tiny_orbax).tensors
    for place in ("7/net", "7/teacher", "5/net"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        write_params(str(tmp_path / place), dict(tensors))
    write_params(str(tmp_path / "7" / "optimizer"), {"a": np.ones(1, np.float32)})
    assert refusal(tmp_path) == f"{tmp_path / '7'}: holds 2 checkpoints: name one of them: net, teacher"
    assert port(read_weights(tmp_path / "5")).model.name == "twins_svt_tiny"
    assert port(read_weights(tmp_path / "7" / "net")).model.name == "twins_svt_tiny"


def test_shards_without_an_index(shards, tmp_path):
    shards()
    (tmp_path / INDEX).unlink()
    assert refusal(tmp_path) == f"{tmp_path}: holds parts of weights such as {FIRST}, but no index (*.index.json)"


def test_a_run_without_an_average_says_so(tiny_orbax, tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    write_params(str(tmp_path / "checkpoints" / "3" / "params"), dict(read_weights(tiny_orbax).tensors))
    step = tmp_path / "checkpoints" / "3"
    assert refusal(tmp_path, ema=True) == f"{step}: holds no moving average ('ema'), but params"


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "but empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "but the pointer to one in Git LFS: fetch it with",
        ),
        (b"<!DOCTYPE html><html>", "but a page of HTML, as a server sends instead of a file: download it again"),
        (b"hello", "nor a folder of weights"),
        (
            npz(),
            "but NumPy's: `safetensors.numpy.save_file(dict(numpy.load(FILE)), 'weights.safetensors')` converts it, ",
        ),
    ],
)
def test_files_that_are_no_weights_say_what_they_are(tmp_path, contents, message):
    path = tmp_path / "a.safetensors"
    path.write_bytes(contents)
    begin = f"{path}: neither a .safetensors file nor one of torch.save or flax.serialization, {message}"
    assert refusal(path).startswith(begin)


def test_files_that_cannot_be_opened_name_the_cause(tmp_path):
    missing, loop = tmp_path / "missing.pth", tmp_path / "loop.pth"
    loop.symlink_to(loop)
    assert refusal(missing) == f"{missing}: No such file or directory"
    assert refusal(loop) == f"source='{loop}': must be no link that leads nowhere"
