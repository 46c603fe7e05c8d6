"""Checks the types of settings, which Python leaves open."""

import dataclasses
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from jax.typing import DTypeLike

from twins_jax.errors import MAX_INT, require

_NAMES = {int: "an integer below 2**31", float: "a number", str: "text", bool: "True or False", NoneType: "None"}


def check_types(config: Any, prefix: str = "") -> None:
    """Checks each field of a dataclass against its annotation, before rules on its value compare it.

    Args:
        config: the dataclass.
        prefix: of its fields' names in messages, such as "optim.".

    Raises:
        InputError: a value is of another type, an integer does not fit into int32, or text holds a NUL character.
    """
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        _check(prefix + field.name, getattr(config, field.name), hints[field.name])


def _check(name: str, value: Any, hint: Any) -> None:
    require(name, value, _fits(value, hint), _describe(hint))
    if is_typeddict(hint):
        hints = get_type_hints(hint)
        for key in value.keys() & hints:
            _check(f"{name}.{key}", value[key], hints[key])


def _fits(value: Any, hint: Any) -> bool:
    arguments = get_args(hint)
    if hint == DTypeLike:
        return True  # the model checks it
    if get_origin(hint) is Literal:
        return value in arguments
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple | list):  # JSON has lists
            return False
        if arguments[-1] is Ellipsis:
            return all(_fits(element, arguments[0]) for element in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_INT
    if hint is float:
        return isinstance(value, float) or _fits(value, int)
    if hint is str:
        return isinstance(value, str) and "\0" not in value
    if is_typeddict(hint):
        return isinstance(value, dict)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(arguments)}"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_describe, arguments))
    if get_origin(hint) is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"{count}values, each {_describe(arguments[0])}"
    return _NAMES.get(hint) or f"a {hint.__name__}"
