"""Files of measured figures."""

import json
from pathlib import Path
from typing import Any

from twins_jax.errors import InputError


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
    """Writes figures as JSON: aside, then renamed, so that a file of earlier ones is whole or replaced.

    Raises:
        InputError: the file cannot be written.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        aside.write_text(json.dumps(figures, indent=1) + "\n")
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise InputError(f"--out: {path} cannot be written to: {error}") from error
