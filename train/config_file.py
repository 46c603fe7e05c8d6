"""Reads the settings of a run from its config.json, those of older versions too."""

import contextlib
import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from jax.typing import DTypeLike

from twins_jax.errors import InputError, one_line

from .config import RunConfig

Config = TypeVar("Config", bound=RunConfig)


def read_object(path: Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object in UTF-8.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8-sig"))  # some editors put a byte order mark first
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # no UTF-8 or no JSON; brackets in brackets
        raise InputError(f"{path}: is no JSON in UTF-8: {one_line(error)}") from error
    if not isinstance(stored, dict):
        raise InputError(f"{path}: must hold a JSON object, holds {type(stored).__name__}")
    return stored


def read_config(path: Path, kind: type[Config]) -> Config:
    """Reads the settings of a run.

    Args:
        path: of its config.json. Fields that the version that wrote it did not have get their defaults, and `renamed`
            ones their new names.
        kind: of the settings.

    Raises:
        InputError: the file cannot be read, or a field of it is unknown, missing or not what it must be.
    """
    stored = read_object(path)
    for old, new in kind.renamed.items():
        group, _, name = old.rpartition(".")
        fields = stored.get(group) if group else stored
        if isinstance(fields, dict) and name in fields:
            stored[new] = fields.pop(name)
    try:
        config: Config = _structure(kind, stored, prefix="")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return config


def _structure(kind: Any, stored: Mapping[str, Any], prefix: str) -> Any:
    """Makes a dataclass or a TypedDict of the fields in JSON's types."""
    hints = typing.get_type_hints(kind)
    if typing.is_typeddict(kind):
        known, required = set(hints), kind.__required_keys__
    else:
        fields, nothing = dataclasses.fields(kind), dataclasses.MISSING
        known = {field.name for field in fields}
        required = {field.name for field in fields if field.default is field.default_factory is nothing}
    for name in sorted(stored.keys() - known):
        raise InputError(f"{prefix}{name}: is no setting of this version")
    for name in sorted(required - stored.keys()):
        raise InputError(f"{prefix}{name}: is missing")
    return kind(**{name: _value(hints[name], value, f"{prefix}{name}") for name, value in stored.items()})


def _value(hint: Any, value: Any, name: str) -> Any:
    """Returns a value in JSON's types as one of the field's type; raises InputError where it is none."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint == DTypeLike:  # by its name
        hint, origin = str, None
    if hint is float and type(value) is int and abs(value) < 2**63:
        return value
    if hint in (bool, int, float, str, type(None)) and type(value) is hint:
        return value
    if origin is Literal and value in parts:
        return value
    if origin is tuple and isinstance(value, list) and len(value) == len(parts):
        return tuple(_value(part, item, name) for part, item in zip(parts, value, strict=True))
    if origin in (Union, types.UnionType):
        for part in parts:
            with contextlib.suppress(InputError):
                return _value(part, value, name)
    if (dataclasses.is_dataclass(hint) or typing.is_typeddict(hint)) and isinstance(value, dict):
        return _structure(hint, value, f"{name}.")
    raise InputError(f"{name}={value!r}: must be {getattr(hint, '__name__', hint)}")
