"""Uploads a model to a repository of Hugging Face."""

import os
import tempfile
from pathlib import Path

from twins_jax.errors import InputError, require
from twins_jax.model import Model
from twins_jax.port.card import model_card
from twins_jax.port.hub_errors import explain, import_client
from twins_jax.port.save import CARD_FILE, save_model


def push_model(
    model: Model,
    repository: str,
    *,
    token: str | bool | None,
    private: bool | None,
    commit_message: str,
    revision: str | None,
    create_pr: bool,
) -> str:
    """Saves a model in a temporary folder, and uploads it; arguments are those of `twins_jax.push_to_hub`.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        InputError: the model cannot be saved, huggingface_hub is not installed, or the upload fails; says why.
    """
    require("repo_id", repository, isinstance(repository, str), 'a repository\'s name, "OWNER/NAME"')
    client = import_client(repository)
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise InputError(f"{repository}: HF_HUB_OFFLINE forbids to upload: unset it")
    from twins_jax import __version__

    with tempfile.TemporaryDirectory() as place:
        folder = os.path.join(place, "model")
        inferred, declared = save_model(model, folder)  # first: what fails here leaves no empty repository behind
        api = client.HfApi(token=token, library_name="twins_jax", library_version=__version__)
        try:
            name: str = api.create_repo(repository, private=private, exist_ok=True).repo_id  # with its owner
            if not api.file_exists(name, CARD_FILE, revision=revision):
                Path(folder, CARD_FILE).write_text(model_card(name, inferred, declared), encoding="utf-8")
            commit = api.upload_folder(
                repo_id=name,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )
        except Exception as error:  # connection, permission, name: many kinds, from several libraries
            raise InputError(f"{repository}: {explain(error, repository, revision)}") from error
    return str(commit.pr_url or commit.commit_url)
