"""Files of measured figures."""

import json
from pathlib import Path
from typing import Any

from twins_jax.errors import InputError


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """Writes figures as JSON: aside, then renamed, so that a file of earlier ones is whole or replaced.

    Raises:
        InputError: the file cannot be written.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(figures, indent=1) + "\n")
        aside.replace(path)
    except OSError as error:
        raise InputError(f"out: {path} cannot be written to: {error.strerror}") from error
