"""hf-hub: names: each way in which a download fails is named as it was seen, after one request; nothing leaves here."""

import errno
import json
import logging

import pytest
import safetensors.torch

from tests.support.hub import Files, answered_by, constants, errors, fail_import, http, hub
from twins_jax.errors import InputError
from twins_jax.port.convert import port
from twins_jax.port.hub import WEIGHT_FILES, download
from twins_jax.port.hub_errors import explain
from twins_jax.port.read import read_weights

SOURCE = "hf-hub:owner/name"


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Files()
    with answered_by(server, tmp_path / "cache", monkeypatch):
        yield server


FAILURES = {
    "no network": (
        http.ConnectError("[Errno -3] Temporary failure in name resolution"),
        "no connection to https://huggingface.co; check the network: ConnectError: [Errno -3] Temporary failure in "
        "name resolution",
    ),
    "timeout": (
        http.ConnectTimeout("timed out"),
        "https://huggingface.co has not answered in time; check the network: ConnectTimeout: timed out",
    ),
    "proxy": (
        http.ProxyError("407 Proxy Authentication Required"),
        "the proxy does not connect; check HTTPS_PROXY: ProxyError: 407 Proxy Authentication Required",
    ),
    "cut off": (
        http.ReadError(""),
        "no connection to https://huggingface.co; check the network: ReadError",
    ),
    "no repository": (
        (401, {"X-Error-Code": "RepoNotFound"}),
        "the server shows no such repository (HTTP 401): check the name; for a private one set HF_TOKEN, or run `hf "
        "auth login`",
    ),
    "gated": (
        (403, {"X-Error-Code": "GatedRepo"}),
        "the repository is gated (HTTP 403): accept its terms at https://huggingface.co/owner/name, and set HF_TOKEN, "
        "or run `hf auth login`",
    ),
    "disabled": (
        (403, {"X-Error-Message": "Access to this resource is disabled."}),
        "the repository is disabled (HTTP 403)",
    ),
    "no revision": ((404, {"X-Error-Code": "RevisionNotFound"}), "the repository has no revision 'v2'"),
    "401": (
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
        "the server huggingface.co answers HTTP 401, the token is missing or wrong: set HF_TOKEN, or run `hf auth "
        "login`",
    ),
    "403": (
        (403, {}),
        "the server huggingface.co answers HTTP 403, the token does not give access: check its permissions",
    ),
    "404": (
        (404, {}),
        "the server huggingface.co answers HTTP 404, it does not know the address: check the name and HF_ENDPOINT",
    ),
    "429": ((429, {}), "the server huggingface.co answers HTTP 429, too many requests: try later, or with a token"),
    "503": ((503, {}), "the server huggingface.co answers HTTP 503, a fault of its own: try later"),
    "400": ((400, {}), "the server huggingface.co answers HTTP 400: Bad request:"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_one_request_decides_and_its_failure_is_named(server, name):
    server.failure, message = FAILURES[name]
    with pytest.raises(InputError) as error:
        download(f"{SOURCE}@v2")
    assert str(error.value).startswith(f"{SOURCE}@v2: {message}")
    assert name == "400" or str(error.value) == f"{SOURCE}@v2: {message}"
    assert len(server.requests) == 1


def test_offline_mode_makes_no_request(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError) as error:
        download(SOURCE)
    assert str(error.value) == (
        f"{SOURCE}: not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to download it: unset it, or "
        f"run `hf download owner/name` beforehand"
    )
    assert not server.requests


@pytest.mark.parametrize("name", ["a/b/c", "", "owner/-name", "owner/name with spaces"])
def test_no_repository_s_name(server, name):
    with pytest.raises(InputError, match=r"^hf-hub:.*: must be OWNER/NAME or OWNER/NAME@REVISION: "):
        download(f"hf-hub:{name}")
    assert not server.requests


@pytest.mark.usefixtures("server")
def test_a_repository_without_weights():
    with pytest.raises(InputError) as error:
        download(SOURCE)
    assert str(error.value) == f"{SOURCE}: the repository holds none of {', '.join(WEIGHT_FILES)}"


def test_answers_that_are_not_of_a_hub(server):
    server.failure = 200, {}
    with pytest.raises(InputError, match=r": the answer is not one of a Hugging Face server; check HF_ENDPOINT"):
        download(SOURCE)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, ""), "CACHE: No space left on device; free some space, or set HF_HUB_CACHE"),
        (OSError(errno.EDQUOT, ""), "CACHE: Disk quota exceeded; free some space, or set HF_HUB_CACHE"),
        (
            PermissionError(errno.EACCES, "", "/a/b"),
            "/a/b: Permission denied; check its permissions, or set HF_HUB_CACHE",
        ),
        (
            OSError(errno.EROFS, "", "/a"),
            "/a: Read-only file system; check its permissions, or set HF_HUB_CACHE",
        ),
    ],
)
@pytest.mark.usefixtures("server")
def test_a_cache_that_cannot_be_written(monkeypatch, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(hub, "hf_hub_download", fail)
    with pytest.raises(InputError) as raised:
        download(SOURCE)
    place = message.replace("CACHE:", f"{constants.HF_HUB_CACHE}:")
    assert str(raised.value) == f"{SOURCE}: the cache cannot be used: {place}"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("Consistency check failed"), "OSError: Consistency check failed"),
        (
            ConnectionResetError(errno.ECONNRESET, "reset"),
            "no connection to https://huggingface.co; check the network: ",
        ),
        (TimeoutError(), "https://huggingface.co has not answered in time; check the network: TimeoutError"),
        (RuntimeError(""), "RuntimeError"),
        (errors.LocalEntryNotFoundError("guess"), "not in the cache "),
    ],
)
def test_other_failures(error, message):
    assert explain(error, "owner/name", None).startswith(message)


@pytest.mark.usefixtures("server")
def test_the_network_is_lost_between_two_files(monkeypatch):
    def fail(*_, **__):
        raise errors.LocalEntryNotFoundError("a guess of the library's") from http.ConnectError("unreachable")

    monkeypatch.setattr(hub, "hf_hub_download", fail)
    with pytest.raises(InputError, match=r": no connection to .*; check the network: ConnectError: unreachable$"):
        download(SOURCE)


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("huggingface_hub", "huggingface_hub is not installed; install it (the extra `hub`)"),
        ("httpx", "huggingface_hub cannot be imported: cannot import name 'x'"),
    ],
)
def test_a_package_that_is_missing_or_broken(monkeypatch, package, message):
    fail_import(monkeypatch, package, "cannot import name 'x'")
    with pytest.raises(InputError) as error:
        download(SOURCE)
    assert str(error.value) == f"{SOURCE}: {message}"


@pytest.mark.parametrize("sharded", [False, True])
def test_what_is_cached_is_taken_without_a_network(server, tiny, caplog, sharded):
    names = list(tiny)
    if sharded:
        parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
        index = {"weight_map": {name: part for part, held in parts.items() for name in held}}
        server.files["model.safetensors.index.json"] = json.dumps(index).encode()
    else:
        parts = {"model.safetensors": names}
    for part, held in parts.items():
        server.files[part] = safetensors.torch.save({name: tiny[name] for name in held})
    server.files["config.json"] = b'{"architecture": "twins_svt_tiny"}'
    assert port(read_weights(SOURCE)).model.name == "twins_svt_tiny"
    server.requests.clear()
    read_weights(SOURCE)
    assert {request.split()[0] for request in server.requests} == {"HEAD"}  # all is there already

    server.requests.clear()
    server.failure = http.ConnectError("unreachable")
    with caplog.at_level(logging.WARNING):
        weights = read_weights(SOURCE)
    assert weights.declared.name == "twins_svt_tiny"
    assert len(port(weights).params) == len(names)
    assert len(server.requests) == 1
    assert f"{SOURCE}: taken from the cache: no connection to" in caplog.text
