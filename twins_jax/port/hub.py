"""Snapshots of Hugging Face model repositories: a folder with weights and a config.json, or the name of one."""

import logging
import os

from twins_jax.errors import InputError
from twins_jax.files import read_object
from twins_jax.paths import HUB_PREFIX
from twins_jax.port import shards
from twins_jax.port.convert import NOTHING_DECLARED, Declared
from twins_jax.port.declared import CONFIG_FILE, from_json
from twins_jax.port.hub_errors import explain, import_client
from twins_jax.published import fetch_by_hand

WEIGHT_FILES = (
    "model.safetensors",
    f"model.safetensors{shards.SUFFIX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{shards.SUFFIX}",
    "flax_model.msgpack",
)
"""The names that timm and transformers give to weights, in order of preference."""

_logger = logging.getLogger(__name__)


def download(source: str) -> str:
    """Downloads config and weights of a repository into Hugging Face's local cache, unless its newest are there.

    One request finds out whether the server can be reached. If not, what the cache has is taken, with a warning.

    Args:
        source: `HUB_PREFIX`, owner, name and optionally "@revision": "hf-hub:timm/twins_svt_small.in1k".

    Returns:
        The weights' path, in the snapshot's folder.

    Raises:
        InputError: huggingface_hub is not installed, or the cache has no weights of the repository and they could not
            be downloaded; says why.
    """
    repository, _, named = source.removeprefix(HUB_PREFIX).partition("@")
    revision, advice = named or None, fetch_by_hand(repository)
    client = import_client(source, advice)
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def fetch(name: str, *, cached: bool) -> str | None:
        try:
            path: str = client.hf_hub_download(repository, name, revision=revision, local_files_only=cached)
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError) and not cached:  # not absent, but out of reach
                raise
            return None
        return path

    def fetch_all(*, cached: bool) -> str | None:
        weights = next((path for name in WEIGHT_FILES if (path := fetch(name, cached=cached))), None)
        if weights:
            fetch(CONFIG_FILE, cached=cached)
            for part in dict.fromkeys(shards.read_index(weights).values()) if weights.endswith(shards.SUFFIX) else ():
                fetch(part, cached=cached)
        return weights

    try:
        try:
            client.get_hf_file_metadata(client.hf_hub_url(repository, WEIGHT_FILES[0], revision=revision))
        except EntryNotFoundError:
            pass  # then the server has the repository, perhaps with weights of another name
        except Exception as error:
            if (weights := fetch_all(cached=True)) is None:
                raise
            _logger.warning("%s: taken from the cache: %s", source, explain(error, repository, revision))
            return weights
        weights = fetch_all(cached=False)
    except InputError:
        raise
    except Exception as error:  # connection, permission, name: many kinds, from several libraries
        raise InputError(f"{source}: {explain(error, repository, revision)}{advice}") from error
    if weights is None:
        raise InputError(f"{source}: the repository holds none of {', '.join(WEIGHT_FILES)}")
    return weights


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
