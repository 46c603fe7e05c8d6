"""The packages that training needs beyond those of the models."""

from importlib.util import find_spec

from twins_jax.errors import InputError

PACKAGES = {
    "grain": "grain",
    "numba": "numba",
    "optax": "optax",
    "PIL": "pillow",
    "simplejpeg": "simplejpeg",
    "tensorboardX": "tensorboardX",
    "tqdm": "tqdm",
    "tyro": "tyro",
}
"""The modules that every run imports, and the packages they come from. Some data sets need more, and name it."""


def check_extra() -> None:
    """Raises InputError that names the packages which are missing, if any."""
    if missing := [package for module, package in PACKAGES.items() if find_spec(module) is None]:
        raise InputError(f"training needs {', '.join(missing)}; install twins_jax with its extra `train`")
