"""The layout of a user's own data set: images/{train,val}/STEM.*, masks/{train,val}/STEM.png and classes.json."""

import json
from pathlib import Path
from typing import Any

from twins_jax.errors import InputError, one_line, shown
from twins_jax.files import read_text

from .masks import check_classes

IMAGES, MASKS, CLASSES = "images", "masks", "classes.json"
SPLITS = {"train": "train", "eval": "val"}


def read_classes(path: Path) -> tuple[str, ...]:
    """Reads the names of the classes, a JSON list, whose positions are the indices in the masks.

    Raises:
        InputError: the file cannot be read or holds something else.
    """
    text = read_text(path)
    try:
        names: Any = json.loads(text)
    except (ValueError, RecursionError) as error:  # the second of brackets in brackets
        raise InputError(f"{path}: is no JSON: {one_line(error)}") from error
    if not isinstance(names, list):
        raise InputError(f"{path}: must hold a list of the classes' names; holds {type(names).__name__}")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{path}: holds {shown(json.dumps(name))}; each class must have a name")
    return check_classes(tuple(names), path)
