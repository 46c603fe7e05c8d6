"""The packages that commands need beyond those of the models."""

from importlib.util import find_spec

from twins_jax.errors import InputError

PACKAGES = {"absl": "absl-py", "PIL": "pillow", "sklearn": "scikit-learn", "tensorflow_datasets": "tensorflow-datasets"}
"""The packages of the modules that have another name."""


def check_installed(*modules: str, purpose: str, extra: str) -> None:
    """Checks that modules can be imported, without importing them.

    Args:
        modules: top-level names.
        purpose: the work that needs them, with which the message begins.
        extra: of twins_jax, which brings them.

    Raises:
        InputError: some are not installed; it names their packages and the extra.
    """
    if missing := [PACKAGES.get(module, module) for module in modules if find_spec(module) is None]:
        raise InputError(f"{purpose} needs {', '.join(missing)}; install twins_jax with its extra `{extra}`")
