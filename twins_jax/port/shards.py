"""Weights in several files, as Hugging Face's libraries split them, and the index that names the files."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from twins_jax.errors import InputError, one_line
from twins_jax.port.convert import Tensors

SUFFIX = ".index.json"
"""The end of an index's name, as in "model.safetensors.index.json"."""

_PART = re.compile(r"(?P<stem>.*)-\d+-of-\d+(?P<suffix>\.\w+)")


def is_index(head: bytes) -> bool:
    """True if a file that begins with these bytes is a JSON object; the length in .safetensors has zero bytes."""
    return head.lstrip().startswith(b"{") and b"\0" not in head[:8]


def is_part(name: str) -> bool:
    """True for the name of one of several files, such as "model-00001-of-00002.safetensors"."""
    return _PART.fullmatch(name) is not None


def read_index(path: str) -> dict[str, str]:
    """Reads an index.

    Returns:
        The tensors' names -> the file's name, in the folder of the index.

    Raises:
        InputError: it is no index, or names a file that is not beside it.
    """
    try:
        with open(path, encoding="utf-8") as file:
            index: Any = json.load(file, object_pairs_hook=_unique)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable index of weights: {one_line(error)}") from error
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(part, str) for part in names.values()):
        raise InputError(f"{path}: no index of weights: has no 'weight_map' from tensors to files")
    for part in dict.fromkeys(names.values()):
        if part in ("", ".", "..") or re.search(r"[/\\\0]", part):
            raise InputError(f"{path}: refused, it names {part!r}: must be a file beside the index")
    return names


def read_shards(path: str, read: Callable[[str], Tensors]) -> Tensors:
    """Reads all tensors of an index's files.

    Args:
        path: of the index.
        read: reads one of the files.

    Raises:
        InputError: lists the files that are missing or are not the index's, or the tensors that are in other files than
            the index says.
    """
    names, folder = read_index(path), os.path.dirname(path)
    parts = dict.fromkeys(names.values())
    families = {match.group("stem", "suffix") for part in parts if (match := _PART.fullmatch(part))}
    problems = [f"  - {part} is missing" for part in parts if not os.path.isfile(os.path.join(folder, part))]
    problems += [
        f"  + {name} is no part of the index"
        for name in sorted(os.listdir(folder or "."))
        if name not in parts and (match := _PART.fullmatch(name)) and match.group("stem", "suffix") in families
    ]
    if problems:
        raise InputError("\n".join([f"{path}: {len(problems)} files are not as it says", *problems]))
    tensors: Tensors = {}
    places: dict[str, str] = {}
    for part in parts:
        for name, tensor in read(os.path.join(folder, part)).items():
            if name in places:
                problems.append(f"  ! {name} is in {places[name]} and in {part}")
            elif name not in names:
                problems.append(f"  + {name} is in {part}, but not in the index")
            places[name] = part
            tensors[name] = tensor
    problems += [f"  - {name} is not in {part}" for name, part in names.items() if places.get(name) != part]
    if problems:
        raise InputError("\n".join([f"{path}: {len(problems)} tensors are not where it says", *problems]))
    return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"{twice!r} stands in it twice")
    return found
