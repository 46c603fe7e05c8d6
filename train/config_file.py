"""Reads the settings of a run from its config.json, those of older versions too."""

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from twins_jax.errors import InputError
from twins_jax.files import read_object

from .config import RunConfig

Config = TypeVar("Config", bound=RunConfig)


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
    """Returns a value in JSON's types in those of the field; `train.validation` refuses what is none of them."""
    if isinstance(value, dict) and (dataclasses.is_dataclass(hint) or typing.is_typeddict(hint)):
        return _structure(hint, value, f"{name}.")
    return tuple(value) if isinstance(value, list) else value
