"""Files of measured figures."""

import json
from pathlib import Path
from typing import Any

from twins_jax.errors import InputError, require
from twins_jax.files import write_text


def check_out(path: Path) -> None:
    """Checks before any measurement that `write_figures` can write to a path, and makes its folder.

    Raises:
        InputError: the path is that of a folder or a device, or its folder cannot be made.
    """
    is_file = bool(path.name) and (path.is_file() or not path.exists())
    require("--out", str(path), is_file, "the path of a file, which may be a new one")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out={str(path)!r}: must be in a folder that can be made: {error}") from error


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """Writes figures as JSON, complete or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(path, json.dumps(figures, indent=1) + "\n")
