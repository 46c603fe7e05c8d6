"""Files of measured figures."""

import json
from pathlib import Path
from typing import Any

from twins_jax.errors import InputError
from twins_jax.files import write_text


def check_out(path: Path) -> None:
    """Says so before anything is measured if `write_figures` could not write there; makes the folder.

    Raises:
        InputError: the path is that of a folder or a device, or its folder cannot be made.
    """
    if not path.name or (path.exists() and not path.is_file()):
        raise InputError(f"--out: {path} is no file; it must be the path of a file, which may be a new one")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {path} cannot be written to: {error}") from error


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """Writes figures as JSON, complete or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(path, json.dumps(figures, indent=1) + "\n")
