"""Snapshots of Hugging Face model repositories: a folder with weights and a config.json, or the name of one."""

import os

from twins_jax.errors import InputError, one_line
from twins_jax.port.convert import NOTHING_DECLARED, Declared
from twins_jax.port.declared import CONFIG_FILE, from_json, read_object

PREFIX = "hf-hub:"
"""The prefix of repositories' names, as timm has it: "hf-hub:timm/twins_svt_small.in1k", optionally "@revision"."""

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""The names that timm and transformers give to weights, in order of preference."""


def download(source: str) -> str:
    """Finds the snapshot of a repository in Hugging Face's local cache, or downloads config and weights into it.

    Args:
        source: `PREFIX`, owner and name.

    Returns:
        The weights' path, in the snapshot's folder.

    Raises:
        InputError: huggingface_hub is not installed, or neither the cache nor the server has the repository.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise InputError(f"{source}: huggingface_hub is not installed; install it (the extra `hub`)") from error
    repository, _, revision = source.removeprefix(PREFIX).partition("@")

    def fetch(name: str) -> str | None:
        try:
            return hf_hub_download(repository, name, revision=revision or None)
        except EntryNotFoundError:
            return None
        except Exception as error:  # connection, permission, name: many kinds, from several libraries
            raise InputError(f"{source}: could not be downloaded: {one_line(error)}") from error

    fetch(CONFIG_FILE)
    for name in WEIGHT_FILES:
        if path := fetch(name):
            return path
    raise InputError(f"{source}: neither the cache nor the server has {' or '.join(WEIGHT_FILES)}")


def find_weights(folder: str) -> str | None:
    """Returns the weights' path in a snapshot's folder, or None if the folder is no snapshot."""
    paths = (os.path.join(folder, name) for name in WEIGHT_FILES)
    return next((path for path in paths if os.path.isfile(path)), None)


def read_config(folder: str) -> Declared:
    """Reads what a snapshot's config.json, in timm's form, declares of the model; nothing without the file.

    Raises:
        InputError: it is no JSON object, or a value cannot be what it stands for.
    """
    path = os.path.join(folder, CONFIG_FILE)
    return from_json(read_object(path), path) if os.path.isfile(path) else NOTHING_DECLARED
