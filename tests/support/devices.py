"""Eight simulated devices, in a process of their own: JAX counts its devices once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT


def measured_on_eight_devices(script: str, folder: Path) -> dict[str, Any]:
    """Runs `python SCRIPT FOLDER` with eight devices, and returns what it writes into FOLDER/found.json."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    command = [sys.executable, script, str(folder)]
    process = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-4000:]
    result: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return result
