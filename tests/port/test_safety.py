"""Hostile and damaged files: one line on stderr, exit code 2, nothing written, nothing run."""

import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

import port_weights
from twins_jax.errors import InputError
from twins_jax.files import staged
from twins_jax.port.write import check_paths


def run(*arguments):
    return port_weights.main([str(argument) for argument in arguments])


def assert_refused(capsys, tmp_path, *arguments, message):
    before = sorted(tmp_path.iterdir())
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert sorted(tmp_path.iterdir()) == before


class RunsCode:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("container", ["model", "beside"])
@pytest.mark.parametrize(
    "options",
    [{}, {"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False}],
    ids=["zip", "protocol-4", "legacy"],
)
def test_pickles_that_would_run_code_run_nothing(tiny, tmp_path, capsys, options, container):
    marker, source = tmp_path / "was_run", tmp_path / "a.pth"
    code = RunsCode(marker)
    torch.save({"model": code} if container == "model" else {"model": tiny, "optimizer": code}, source, **options)
    if container == "model":
        assert_refused(capsys, tmp_path, source, tmp_path / "orbax", message="left unread: posix.mkdir")
    else:
        assert run(source, tmp_path / "orbax") == 0
        assert "left unread: posix.mkdir\n" in capsys.readouterr().out
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_are_refused(tmp_path, capsys, protocol):
    (tmp_path / "a.pth").write_bytes(pickle.dumps(RunsCode(tmp_path / "was_run"), protocol))
    assert_refused(capsys, tmp_path, tmp_path / "a.pth", tmp_path / "orbax", message="a.pth: ")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "neither"),
        (b"P", "neither"),
        (b"hello, world", "neither"),
        (b"PK\x03\x04", "damaged or truncated torch checkpoint"),
        (b"\x80\x02", "not a readable torch checkpoint"),
        (b"\xff" * 7 + b"\x7f{", "not a readable .safetensors file"),
        ((200_000_000).to_bytes(8, "little") + b"{" + b" " * 1000, "not a readable .safetensors file"),
        ((2).to_bytes(8, "little") + b"{}", "holds no tensors"),
    ],
)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_files_that_are_no_checkpoints(tmp_path, capsys, name, contents, message):
    (tmp_path / name).write_bytes(contents)
    assert_refused(capsys, tmp_path, tmp_path / name, tmp_path / "orbax", message=message)


@pytest.mark.parametrize("name", ["a.msgpack", "a.npz", "a.H5", "a.tar", "a.safetensor", "a.pht", "a.cpkt"])
def test_endings_of_other_files_are_no_names_of_folders(tiny_pth, tmp_path, capsys, name):
    message = "must end in one of .safetensors, .pth, .pt, .bin, .ckpt, .pth.tar, or be the name of an Orbax folder"
    assert_refused(capsys, tmp_path, tiny_pth, tmp_path / name, message=message)


@pytest.mark.parametrize("name", ["folder", "a", "svt.v1", "run-2.5", "tiny.orbax", "step_10.params", ".hidden"])
def test_other_names_are_of_folders(tmp_path, name):
    check_paths("source", str(tmp_path / name), overwrite=False)


@pytest.mark.parametrize("is_link", [False, True])
def test_a_pipe_is_named_and_not_waited_for(tmp_path, capsys, is_link):
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "link.pth").symlink_to("pipe.pth")
    source = tmp_path / ("link.pth" if is_link else "pipe.pth")
    descriptor = os.open(tmp_path / "pipe.pth", os.O_RDWR | os.O_NONBLOCK)  # a reader would get what follows
    os.write(descriptor, b"x" * 1000)
    try:
        assert_refused(capsys, tmp_path, source, tmp_path / "orbax", message="is a pipe; must be a regular file")
    finally:
        os.close(descriptor)
    assert_refused(capsys, tmp_path, "/dev/null", tmp_path / "orbax", message="is a device; must be a regular file")


def test_other_sources_that_are_no_checkpoints(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("hello.txt", "hello")
    (tmp_path / "folder").mkdir()
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    torch.save({"model": {"a": 1}}, tmp_path / "number.pth")
    torch.save({"model": {"a": torch.eye(3).to_sparse()}}, tmp_path / "sparse.pth")
    torch.save({"conv1.weight": torch.ones(1), "fc.bias": torch.ones(1)}, tmp_path / "resnet.pth")
    for name, message in {
        "a.zip": "not a readable torch checkpoint",
        "folder": "no Orbax folder of parameters",
        "missing": "No such file",
        "list.pth": "holds a list",
        "number.pth": "holds a dict without tensors: must hold a state dict",
        "sparse.pth": "a is no plain tensor",
        "resnet.pth": "holds no Twins parameters, but 2 tensors such as conv1.weight, fc.bias",
    }.items():
        assert_refused(capsys, tmp_path, tmp_path / name, tmp_path / "orbax", message=message)


def test_a_flipped_bit_in_a_torch_file_is_found(tiny_pth, tmp_path, capsys):
    data = bytearray(tiny_pth.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.pth").write_bytes(data)
    assert_refused(capsys, tmp_path, tmp_path / "a.pth", tmp_path / "orbax", message="does not match its checksum")


def test_torch_files_without_checksums_are_read(tiny, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tiny, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert run("--inspect", tmp_path / "a.pth") == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's, after its error
def test_damaged_orbax_folders(tiny_orbax, tmp_path, capsys):
    files = [path.relative_to(tiny_orbax) for path in tiny_orbax.rglob("*") if path.is_file()]
    for name in (file for file in files if file.name in ("_METADATA", "manifest.ocdbt") and len(file.parts) == 1):
        folder = tmp_path / f"damaged{name}"
        shutil.copytree(tiny_orbax, folder)
        (folder / name).write_bytes((folder / name).read_bytes()[:20])
        before = sorted(tmp_path.iterdir())
        assert run(folder, tmp_path / "back.pth") == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert sorted(tmp_path.iterdir()) == before


def test_an_existing_target_stays_without_overwrite(tiny_pth, tiny_orbax, tmp_path, capsys):
    (tmp_path / "b.pth").write_text("mine")
    assert_refused(capsys, tmp_path, tiny_orbax, tmp_path / "b.pth", message="exists already")
    assert (tmp_path / "b.pth").read_text() == "mine"
    assert run(tiny_orbax, tmp_path / "b.pth", "--overwrite") == 0
    assert torch.load(tmp_path / "b.pth", weights_only=True).keys()

    assert run(tiny_pth, tmp_path / "orbax") == 0
    stamp = (tmp_path / "orbax" / "_METADATA").stat().st_mtime_ns
    assert_refused(capsys, tmp_path, tiny_pth, tmp_path / "orbax", message="exists already")
    assert run(tiny_pth, tmp_path / "orbax", "--overwrite") == 0
    assert (tmp_path / "orbax" / "_METADATA").stat().st_mtime_ns != stamp
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.pth", "orbax"]


def test_other_folders_are_never_overwritten(tiny_pth, tmp_path, capsys):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("mine")
    message = "is never overwritten"
    assert_refused(capsys, tmp_path, tiny_pth, tmp_path / "home", "--overwrite", message=message)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "mine"


def test_a_failed_overwrite_leaves_the_old_target(tiny_orbax, tmp_path, capsys):
    torch.save({}, tmp_path / "empty.pth")
    assert run(tiny_orbax, tmp_path / "b.pth") == 0
    old = (tmp_path / "b.pth").read_bytes()
    assert_refused(
        capsys, tmp_path, tmp_path / "empty.pth", tmp_path / "b.pth", "--overwrite", message="without tensors"
    )
    assert (tmp_path / "b.pth").read_bytes() == old


@pytest.mark.parametrize("target", ["b.pth", "b.safetensors", "orbax"])
def test_a_full_disk_leaves_nothing(tiny_pth, tiny_orbax, tmp_path, target):
    source = tiny_pth if target == "orbax" else tiny_orbax
    command = f"ulimit -f 1024; exec {sys.executable} {port_weights.__file__} {source} {tmp_path / target}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def write() -> None:
        with staged(str(tmp_path / "a")) as path:
            Path(path).write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="could not be written: full"), staged(str(tmp_path / "a")):
        raise OSError("full")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "SRC"),
        (["a.pth"], "DST is missing"),
        (["--inspect", "a.pth", "b"], "--inspect takes SRC alone"),
        (["a.pth", "b", "--report", "r"], "--report is of --verify"),
        (["a.pth", "b", "--nonsense"], "--nonsense"),
    ],
)
def test_wrong_command_lines(capsys, arguments, message):
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert error.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert message in text


def test_paths_that_cannot_be_written(tiny_pth, tiny_orbax, tmp_path, capsys):
    missing, twice = tmp_path / "no" / "where", tmp_path / "b.pth"
    assert_refused(capsys, tmp_path, tiny_pth, missing, message="does not exist")
    assert_refused(capsys, tmp_path, tiny_pth, tmp_path / "b.pth", message="PyTorch's names already")
    assert_refused(capsys, tmp_path, tiny_orbax, tiny_orbax, "--overwrite", message="is given twice")
    assert_refused(capsys, tmp_path, tiny_orbax, twice, "--verify", "--report", twice, message="is given twice")


def test_safetensors_of_integers_are_refused(tiny, tmp_path, capsys):
    state = {name: tensor.to(torch.int32) for name, tensor in tiny.items()}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    assert run(tmp_path / "a.safetensors", tmp_path / "orbax") == 2
    assert "has dtype int32, expected floating-point" in capsys.readouterr().err


def test_names_that_are_given_twice_are_refused(tiny, tmp_path, capsys):
    safetensors.torch.save_file(tiny, tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    data = data.replace(b'"blocks.0.0.norm1.weight"', b'"blocks.0.0.norm2.weight"')
    (tmp_path / "a.safetensors").write_bytes(data)
    assert run(tmp_path / "a.safetensors", tmp_path / "orbax") == 2
    assert capsys.readouterr().err.startswith("error: ")
