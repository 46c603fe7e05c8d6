"""Reads flags of types that tyro does not know."""

from typing import Any

from jax.typing import DTypeLike
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

FLAGS = ConstructorRegistry()
"""Of dtypes, by their names."""

DTYPES = ("float32", "bfloat16")


@FLAGS.primitive_rule
def _dtype(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[str] | None:
    wanted: Any = info.type
    if wanted != DTypeLike:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(DTYPES)}}}",
        choices=DTYPES,
        instance_from_str=lambda arguments: arguments[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    )
