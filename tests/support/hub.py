"""Puts a function in the place of the network below Hugging Face's client, whose own code runs up to there."""

import builtins
import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

hub = pytest.importorskip("huggingface_hub")
constants = importlib.import_module("huggingface_hub.constants")
errors = importlib.import_module("huggingface_hub.errors")
http = importlib.import_module(errors.HTTPError.__module__.partition(".")[0])  # httpx, under the name of the version

COMMIT = "0" * 40


@contextlib.contextmanager
def answered_by(server: Callable[[Any], Any], cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets a function of a request answer all requests, with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    factory = importlib.import_module("huggingface_hub.utils._http").default_client_factory
    with factory() as client:
        hooks = client.event_hooks  # refuse requests in offline mode
    transport = http.MockTransport(server)
    hub.set_client_factory(lambda: http.Client(transport=transport, follow_redirects=True, event_hooks=hooks))
    yield
    hub.set_client_factory(factory)


def fail_import(monkeypatch: pytest.MonkeyPatch, package: str, message: str = "") -> None:
    """Makes the import of Hugging Face's client fail for want of a package, which may be itself."""
    original = builtins.__import__

    def fail(name: str, *args: Any) -> Any:
        if name == "huggingface_hub":
            raise ImportError(message, name=package)
        return original(name, *args)

    monkeypatch.setattr(builtins, "__import__", fail)


class Files:
    """Answers requests for the files of one repository, and keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.files: dict[str, bytes] = {}
        self.failure: Exception | tuple[int, dict[str, str]] | None = None
        """Raised, or answered as status and headers, whatever the request."""

    def __call__(self, request: Any) -> Any:
        if "/resolve/" in request.url.path:  # the library asks once about itself, too
            self.requests.append(f"{request.method} {request.url.path}")
        if isinstance(self.failure, Exception):
            raise self.failure
        if self.failure:
            status, headers = self.failure
            return http.Response(status, headers=headers)
        name = request.url.path.partition("/resolve/main/")[2]
        if name not in self.files:
            return http.Response(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{name}"', "Content-Length": str(len(self.files[name]))}
        return http.Response(200, headers=headers, content=self.files[name] if request.method == "GET" else b"")
