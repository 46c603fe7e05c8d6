"""Damaged copies of real files: an error of one line, or the model that the undamaged bytes hold.

TWINS_MUTATIONS=20000 python -m pytest tests/port/test_mutations.py    # ten times as many
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import port_weights
from tests.scripts.fuzz_checkpoints import hot_range, mutate
from tests.support.paths import ROOT
from twins_jax.port.safetensors_io import read_safetensors

COUNT = int(os.environ.get("TWINS_MUTATIONS", "2000"))
FORMATS = {"zip": 8, "legacy": 4, "safetensors": 8}  # twentieths of them


@pytest.fixture(scope="module")
def originals(tiny: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("originals")
    half = {name: tensor.half() for name, tensor in tiny.items()}  # for speed
    torch.save({"model": half}, folder / "zip")
    torch.save({"model": half}, folder / "legacy", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(half, folder / "safetensors")
    return {name: (folder / name).read_bytes() for name in FORMATS}


def port_file(source: Path, target: Path, capsys) -> dict[str, np.ndarray] | None:
    """Returns the ported model, or None for a file that is refused as it should be; anything else fails."""
    code = port_weights.main([str(source), str(target)])
    error = capsys.readouterr().err
    if code == 0:
        tensors = read_safetensors(str(target))
        target.unlink()
        return tensors
    assert code == 2
    first, *names = error.splitlines()
    assert first.startswith("error: ")
    assert len(first) < 2000
    assert all(line.startswith(("  - ", "  + ", "  ! ")) for line in names)
    return None


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files(originals, tmp_path, capsys, name):
    source, target = tmp_path / "source", tmp_path / "target.safetensors"
    data, hot = originals[name], hot_range(name, originals[name])
    source.write_bytes(data)
    original = port_file(source, target, capsys)
    count, accepted, changed = COUNT * FORMATS[name] // 20, 0, 0
    for seed in range(count):
        mutated = mutate(data, np.random.default_rng([seed, *name.encode()]), hot)
        source.write_bytes(mutated)
        tensors = port_file(source, target, capsys)
        assert [path.name for path in tmp_path.iterdir()] == ["source"], seed
        if tensors is None:
            continue
        accepted += 1
        assert tensors.keys() == original.keys(), seed
        assert all(tensors[path].shape == original[path].shape for path in original), seed
        assert all(tensors[path].dtype == original[path].dtype for path in original), seed
        if not all(np.array_equal(tensors[path], original[path]) for path in original):
            changed += 1
            assert name != "zip", f"seed {seed}: a wrong model in spite of checksums"
            assert mutated[hot.start : hot.stop] == data[hot.start : hot.stop] or name == "legacy", seed
    with capsys.disabled():
        print(f"\n{name}: {count} damaged files, {accepted} ported, of which {changed} with other values")  # noqa: T201
    assert accepted < count / 2


class RunsCode:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


def test_damaged_malware(tmp_path, capsys):
    source, target, marker = tmp_path / "source", tmp_path / "target.safetensors", tmp_path / "was_run"
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"model": RunsCode(marker), "more": [torch.ones(3)] * 3}, source, **options)
        data = source.read_bytes()
        for seed in range(COUNT // 20):
            source.write_bytes(mutate(data, np.random.default_rng(seed), range(len(data))))
            assert port_file(source, target, capsys) is None
            assert not marker.exists()


def test_nothing_else_happens_while_files_are_read():
    """A few of the files that the script reads when it is run by hand, in a process of their own."""
    script = ROOT / "tests" / "scripts" / "fuzz_checkpoints.py"
    done = subprocess.run(
        [sys.executable, script, "--count", "200"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)
    assert (figures["files"], figures["found"]) == (200, [])
    kinds = figures["counts"].keys()
    assert {"zip refused", "pickle read", "legacy refused", "header refused"} <= kinds
    # The damaged files of an Orbax folder are chosen among random names: those that nothing reads are no error.
    assert kinds & {"orbax read", "orbax refused"}
