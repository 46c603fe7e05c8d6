"""Files of measured figures."""

import json
from pathlib import Path
from typing import Any

from twins_jax.errors import InputError
from twins_jax.files import write_text
from twins_jax.paths import target_path


def check_out(value: str) -> Path:
    """Returns the path of a file that `write_figures` can write, and makes its folder, before any measurement.

    Raises:
        InputError: the path is no local one, that of a folder or a device, or its folder cannot be made.
    """
    path = target_path("--out", value, "file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out={str(path)!r}: must be in a folder that can be made: {error}") from error
    return path


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """Writes figures as JSON, complete or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(path, json.dumps(figures, indent=1) + "\n")
