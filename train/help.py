"""The short help of a recipe: a line for each flag in common use, with its value in the recipe."""

import dataclasses
import inspect
import re
import shutil
import textwrap
import typing
from collections.abc import Collection, Iterator
from typing import Any

import docstring_parser

from .config import RunConfig

FLAG_COLUMNS = 34
"""Width of a flag with its value, before the text."""

MAX_COLUMNS = 110
"""Longest line on a wide terminal."""

ALL_VARIANTS = "{pcpvt,svt}_{small,base,large}"


def recipe_patterns(names: Collection[str]) -> list[str]:
    """Shortens names of recipes, which are for all six variants or for none, to patterns as shells expand them."""
    return list(dict.fromkeys(re.sub("(pcpvt|svt)_(small|base|large)", ALL_VARIANTS, name) for name in names))


def short_help(default: Any, advanced: Collection[str]) -> str:
    """Returns a group of lines for each dataclass in the settings, as wide as the terminal.

    Args:
        default: the settings, a dataclass whose fields are the flags.
        advanced: the names of flags that are left out.
    """
    width = min(shutil.get_terminal_size().columns, MAX_COLUMNS)
    groups: dict[str, list[str]] = {}
    for name, value, text in _flags(default):
        if name not in advanced:
            groups.setdefault(name.rpartition(".")[0] or "run", []).append(_line(name, value, text, width))
    return "\n\n".join("\n".join([group, *lines]) for group, lines in groups.items())


def _flags(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yields name, value and text of each flag, those of a group's own before those of its groups."""
    hints, texts, groups = typing.get_type_hints(type(config)), _texts(type(config)), []
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value) or typing.is_typeddict(hints[field.name]):
            groups.append((name, value, hints[field.name]))
        else:
            yield name, value, texts.get(field.name, "")
    for name, value, hint in groups:
        if typing.is_typeddict(hint):
            texts = _texts(hint)
            for key in sorted(value, key=lambda key: key not in hint.__required_keys__):
                yield f"{name}.{key}", value[key], texts.get(key, "")
        else:
            yield from _flags(value, "" if isinstance(value, RunConfig) else f"{name}.")


def _texts(kind: Any) -> dict[str, str]:
    """Reads the texts below the fields of a class and of those that it extends, or in its own docstring."""
    texts: dict[str, str] = {}
    for each in reversed(inspect.getmro(kind)):
        if each.__module__ != "builtins":
            found = docstring_parser.parse_from_object(each).params
            texts |= {field.arg_name: " ".join((field.description or "").split()) for field in found}
    return texts


def _line(name: str, value: Any, text: str, width: int) -> str:
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else repr(value) if value == "" else str(value)
    flag = f"  --{name}" if isinstance(value, bool) else f"  --{name} {shown}"
    room = width - FLAG_COLUMNS
    if len(text) > room:
        text = text.partition(". ")[0].rstrip(".")
    indent = " " * FLAG_COLUMNS
    lines = textwrap.wrap(text.rstrip("."), max(room, 20), break_on_hyphens=False)
    if len(flag) < FLAG_COLUMNS:
        return f"\n{indent}".join([flag.ljust(FLAG_COLUMNS) + (lines[0] if lines else ""), *lines[1:]])
    return f"\n{indent}".join([flag, *lines])
