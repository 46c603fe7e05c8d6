"""Ctrl-C while a command imports its libraries."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

COMMANDS = (
    *(["-m", f"train.{name}"] for name in ("main", "prepare", "plot", "benchmark", "benchmark.aot")),
    ["port_weights.py"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("interrupted", [True, False])
def test_one_line_during_imports(command: list[str], interrupted: bool, tmp_path: Path) -> None:
    fault = "import signal; signal.raise_signal(signal.SIGINT)" if interrupted else "raise KeyError"
    (tmp_path / "jax.py").write_text(fault)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    if interrupted:
        assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "stopped by SIGINT\n")  # 130 in a shell
    else:
        assert ended.returncode == 1
        assert ended.stderr.endswith("KeyError\n")
