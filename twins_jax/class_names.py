"""Names of a model's outputs."""

from collections.abc import Sequence

from twins_jax.errors import require


def checked_class_names(names: Sequence[str] | None, num_classes: int) -> tuple[str, ...] | None:
    """Returns the names that a model gets, as a tuple.

    Raises:
        InputError: they are no list or tuple of a string for each of the `num_classes` outputs.
    """
    are_names = isinstance(names, tuple | list) and all(isinstance(name, str) for name in names)
    is_right = names is None or (are_names and len(names) == num_classes)
    require("class_names", names, is_right, f"None or {num_classes} strings, one for each of num_classes")
    return None if names is None else tuple(names)
