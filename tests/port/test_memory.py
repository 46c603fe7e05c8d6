"""The peak memory of a port, measured: at most 2.5 times the size of SRC over what the imports take."""

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

import port_weights

ROOT = Path(port_weights.__file__).parent


@pytest.fixture(scope="module")
def sources(make_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    state = make_model("twins_svt_small").state_dict()
    torch.save({"model": state}, folder / "a.pth")
    safetensors.torch.save_file(state, folder / "a.safetensors")
    assert port_weights.main([str(folder / "a.pth"), str(folder / "orbax")]) == 0
    return folder


@pytest.mark.parametrize(
    ("source", "target"),
    [("a.pth", "ours"), ("a.safetensors", "ours"), ("orbax", "back.pth"), ("orbax", "back.safetensors")],
)
def test_peak_memory(sources, tmp_path, source, target):
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "scripts" / "peak_memory.py", sources / source, tmp_path / target],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 0.5 < float(done.stdout.split()[-1]) <= 2.5
