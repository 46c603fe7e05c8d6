"""Says in one line what Hugging Face's client met, and what to do about it."""

import errno
import os
from typing import Any

from twins_jax.errors import InputError, one_line

LOGIN = "set HF_TOKEN, or run `hf auth login`"


SEEN = {
    "HFValidationError": "must be OWNER/NAME or OWNER/NAME@REVISION: {text}",
    "OfflineModeIsEnabled": (
        "not in the cache {cache}, and HF_HUB_OFFLINE forbids to download it: unset it, or run "
        "`hf download {repository}` beforehand"
    ),
    "GatedRepoError": (
        "the repository is gated (HTTP {status}): accept its terms at {endpoint}/{repository}, and " + LOGIN
    ),
    "DisabledRepoError": "the repository is disabled (HTTP {status})",
    "RepositoryNotFoundError": (
        "the server shows no such repository (HTTP {status}): check the name; for a private one " + LOGIN
    ),
    "RevisionNotFoundError": "the repository has no revision {revision!r}",
    "FileMetadataError": "the answer is not one of a Hugging Face server; check HF_ENDPOINT and proxies: {text}",
}
"""The errors of huggingface_hub, by the names of their classes, and the causes that they stand for."""


def import_client(place: str, advice: str = "") -> Any:
    """Imports huggingface_hub.

    Args:
        place: the repository, for the error.
        advice: the end of the error.

    Raises:
        InputError: it is not installed, or cannot be imported.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        missing = error.name == "huggingface_hub"
        found = (
            "is not installed; install it (the extra `hub`)" if missing else f"cannot be imported: {one_line(error)}"
        )
        raise InputError(f"{place}: huggingface_hub {found}{advice}") from error
    return huggingface_hub


def explain(error: BaseException, repository: str, revision: str | None) -> str:
    """Returns the cause of a failed download or upload, for an error message that begins with the repository's name.

    Args:
        error: as huggingface_hub, its HTTP client or the file system raised it.
        repository: its name.
        revision: the one asked for, or None.
    """
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError):  # no cause of its own, but the one it was raised from
        if error.__cause__ is not None:
            return explain(error.__cause__, repository, revision)
        return f"not in the cache {constants.HF_HUB_CACHE}"
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):  # it names the file, and no cause
        return explain(error.__cause__, repository, revision)
    for kind in type(error).__mro__:  # the most special first
        if seen := SEEN.get(kind.__name__):
            return seen.format(
                cache=constants.HF_HUB_CACHE,
                endpoint=constants.ENDPOINT,
                repository=repository,
                revision=revision,
                status=getattr(getattr(error, "response", None), "status_code", None),
                text=one_line(error),
            )
    if isinstance(error, errors.HfHubHTTPError):
        return _explain_status(error)
    return _explain_connection(error, constants) or _explain_files(error, constants) or _any(error)


def _explain_status(error: Any) -> str:
    status = error.response.status_code
    seen = f"the server {error.response.url.host} answers HTTP {status}"
    advice = {
        401: f"the token is missing or wrong: {LOGIN}",
        403: "the token does not give access: check its permissions",
        404: "it does not know the address: check the name and HF_ENDPOINT",
        429: "too many requests: try later, or with a token",
    }
    if status in advice:
        return f"{seen}, {advice[status]}"
    return f"{seen}, a fault of its own: try later" if status >= 500 else f"{seen}: {one_line(error)}"


def _explain_connection(error: BaseException, constants: Any) -> str | None:
    """Explains the errors of httpx, which the versions of huggingface_hub import under several names."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "ProxyError" in kinds:
        return f"the proxy does not connect; check HTTPS_PROXY: {_any(error)}"
    if "TimeoutException" in kinds or isinstance(error, TimeoutError):
        return f"{constants.ENDPOINT} has not answered in time; check the network: {_any(error)}"
    if "TransportError" in kinds or isinstance(error, ConnectionError):
        return f"no connection to {constants.ENDPOINT}; check the network: {_any(error)}"
    return None


def _explain_files(error: BaseException, constants: Any) -> str | None:
    if not isinstance(error, OSError) or error.errno is None:
        return None
    place = error.filename or constants.HF_HUB_CACHE
    advice = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check its permissions"
    return f"the cache cannot be used: {place}: {os.strerror(error.errno)}; {advice}, or set HF_HUB_CACHE"


def _any(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}" if str(error).strip() else type(error).__name__
