"""push_to_hub: Hugging Face's own client runs, up to a stand-in of the hub's API; nothing leaves here."""

import base64
import dataclasses
import hashlib
import importlib
import json

import pytest

import twins_jax
from tests.support.hub import COMMIT, Files, answered_by, constants, fail_import, http, hub
from tests.support.models import SVT, classifier, named
from twins_jax.config import VARIANTS
from twins_jax.errors import InputError

ENDPOINT, NAMES = "https://huggingface.co", ("cat", "dog\nhouse", "`", "\udce9")
OFFLINE = "HF_HUB_OFFLINE forbids to upload: unset it"


class Hub(Files):
    """A repository that can be made and written: small files in the commit itself, large ones in Git LFS."""

    def __init__(self):
        super().__init__()
        self.created, self.commits, self.blobs, self.tokens = [], [], {}, set()
        self.refused = {}
        """Part of a path -> what is answered there: status and headers."""

    def __call__(self, request):
        path = request.url.path
        for part, (status, headers) in self.refused.items():
            if part in path:
                return http.Response(status, headers=headers, json={"error": "no"})
        if path == "/api/validate-yaml":
            return http.Response(200, json={"errors": [], "warnings": []})
        if request.method in ("GET", "HEAD"):
            return super().__call__(request)
        self.tokens.add(request.headers.get("authorization"))
        body = request.read()
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            owner = self.created[-1]["organization"] or "me"
            return http.Response(200, json={"url": f"{ENDPOINT}/{owner}/{self.created[-1]['name']}"})
        if "/preupload/" in path:
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                for file in json.loads(body)["files"]
            ]
            return http.Response(200, json={"files": [mode | {"shouldIgnore": False} for mode in modes]})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                entry | {"actions": {"upload": {"href": f"{ENDPOINT}/blobs/{entry['oid']}"}}}
                for entry in json.loads(body)["objects"]
            ]
            return http.Response(200, json={"transfer": "basic", "objects": objects})
        if path.startswith("/blobs/"):
            self.blobs[hashlib.sha256(body).hexdigest()] = body
            return http.Response(200)
        assert "/commit/" in path, path
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.commits.append((path, value["summary"], dict(request.url.params)))
            elif line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            else:
                self.files[value["path"]] = self.blobs[value["oid"]]
        answer = {"commitUrl": f"{ENDPOINT}/owner/name/commit/{COMMIT}", "commitOid": COMMIT}
        pull_request = {"pullRequestUrl": f"{ENDPOINT}/owner/name/discussions/1"} if request.url.params else {}
        return http.Response(200, json=answer | pull_request)


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Hub()
    with answered_by(server, tmp_path / "cache", monkeypatch):
        yield server


@pytest.fixture(scope="module")
def model():
    """Of a variant with few blocks to trace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "mini", SVT)
        model = classifier(dataclasses.replace(SVT, window_padding="mask"), 4)
        model.class_names, model.preprocessing = NAMES, twins_jax.Preprocessing(96)
        yield model


def card(server):
    return hub.ModelCard(server.files["README.md"].decode())


def test_there_and_back(server, model):
    url = twins_jax.push_to_hub(model, "owner/name", token="hf_secret", private=True, commit_message="first")
    assert url == f"{ENDPOINT}/owner/name/commit/{COMMIT}"
    assert [(made["organization"], made["name"]) for made in server.created] == [("owner", "name")]
    assert "private" in server.created[0].values() or server.created[0]["private"]
    assert server.commits == [("/api/models/owner/name/commit/main", "first", {})]
    assert server.tokens == {"Bearer hf_secret", None}  # None: of the storage, whose addresses are signed
    assert sorted(server.files) == ["README.md", "config.json", "model.safetensors"]

    back = twins_jax.from_pretrained("hf-hub:owner/name")
    assert (back.class_names, back.preprocessing, back.config) == (NAMES, model.preprocessing, model.config)
    found, expected = (named(twins_jax.get_params(each)) for each in (back, model))
    assert found.keys() == expected.keys()
    assert all(found[name].tobytes() == array.tobytes() for name, array in expected.items())


def test_the_card(server, model):
    twins_jax.push_to_hub(model, "name")  # of one's own account
    data = card(server).data.to_dict()
    assert data == {"library_name": "twins_jax", "pipeline_tag": "image-classification", "tags": ["twins_jax", "jax"]}
    text = card(server).content
    for fact in ("# name\n", 'twins_jax.from_pretrained("hf-hub:me/name")', "96 x 96", 'window_padding="mask"'):
        assert fact in text
    assert text.endswith("\n## Classes\n\n    0 cat\n    1 'dog\\nhouse'\n    2 `\n    3 '\\udce9'\n")
    assert "timm" not in text  # which lacks the variant
    server.files["README.md"] = b"mine"
    twins_jax.push_to_hub(model, "me/name")
    assert server.files["README.md"] == b"mine"
    assert server.commits[1] == ("/api/models/me/name/commit/main", "Upload model with twins_jax", {})


def test_the_card_of_other_models():
    from twins_jax.port.card import model_card
    from twins_jax.port.convert import Declared
    from twins_jax.port.infer import Inferred

    def of(name="twins_pcpvt_small", channels=3, classes=1000, norms=False, **declared):
        return model_card("a/b", Inferred(name, channels, classes, norms), Declared(**declared))

    text = of(class_names=tuple(map(str, range(1000))), window_padding="mask")
    assert hub.ModelCard(text).data.tags == ["twins_jax", "jax", "timm"]
    assert 'timm.create_model("hf-hub:a/b", pretrained=True)' in text
    assert "timm pads windows with zeros" in text
    assert text.count("\n    ") == 20
    assert text.endswith("    19 19\n\n`label_names` of `config.json` lists all.\n")
    assert "timm pads" not in of(window_padding="zero")
    assert "- Channels: 12" in of(channels=12)
    backbone = of("twins_svt_small", classes=None, norms=True)
    assert "backbone with stage norms" in backbone
    assert 'backbone_from_pretrained("hf-hub:a/b")' in backbone
    assert hub.ModelCard(backbone).data.pipeline_tag == "image-feature-extraction"
    assert hub.ModelCard(of(classes=0)).data.pipeline_tag == "image-feature-extraction"


def test_a_branch_and_a_pull_request(server, model):
    twins_jax.push_to_hub(model, "owner/name", revision="v2")
    assert server.commits[-1][0] == "/api/models/owner/name/commit/v2"
    url = twins_jax.push_to_hub(model, "owner/name", create_pr=True)
    assert url == f"{ENDPOINT}/owner/name/discussions/1"
    assert server.commits[-1] == (
        "/api/models/owner/name/commit/main",
        "Upload model with twins_jax",
        {"create_pr": "1"},
    )


REFUSED = {
    "/api/repos/create": {
        401: "the server huggingface.co answers HTTP 401, the token is missing or wrong: set HF_TOKEN, or run `hf auth "
        "login`",
        403: "the server huggingface.co answers HTTP 403, the token does not give access: check its permissions",
        500: "the server huggingface.co answers HTTP 500, a fault of its own: try later",
    },
    "/preupload/": {404: "the repository has no revision 'v2'"},
    "/blobs/": {
        403: "the server huggingface.co answers HTTP 403, the token does not give access: check its permissions"
    },
    "/commit/": {
        403: "the server huggingface.co answers HTTP 403, the token does not give access: check its permissions"
    },
}


@pytest.mark.parametrize(("part", "status"), [(part, status) for part, found in REFUSED.items() for status in found])
def test_a_refused_upload_is_named(server, model, part, status):
    server.refused = {
        part: (status, {"X-Error-Code": "RevisionNotFound"} if status == 404 else {}),
        "/api/models/": (401, {}),
    }
    if part != "/api/repos/create":
        del server.refused["/api/models/"]
    with pytest.raises(InputError) as caught:
        twins_jax.push_to_hub(model, "owner/name", revision="v2")
    assert str(caught.value) == f"owner/name: {REFUSED[part][status]}"
    assert server.commits == []


def test_without_a_network(server, model, monkeypatch):
    server.failure = http.ConnectError("unreachable")
    monkeypatch.setattr(Hub, "__call__", Files.__call__)
    with pytest.raises(InputError, match=r"^owner/name: no connection to https://huggingface.co; check the network: "):
        twins_jax.push_to_hub(model, "owner/name")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError) as caught:
        twins_jax.push_to_hub(model, "owner/name")
    assert str(caught.value) == f"owner/name: {OFFLINE}"


@pytest.mark.parametrize("name", ["a/b/c", "", "owner/-name", "hf-hub:owner/name", "owner/name@v2", "a b"])
def test_no_repository_s_name(server, model, name):
    with pytest.raises(InputError, match=rf"^{name}: must be OWNER/NAME"):
        twins_jax.push_to_hub(model, name)
    assert server.created == []


def test_a_model_that_cannot_be_saved_makes_no_repository(server, model):
    with pytest.raises(InputError, match=r"^model=<class 'int'>: must be a TwinsClassifier"):
        twins_jax.push_to_hub(3, "owner/name")
    with pytest.raises(InputError, match=r"^repo_id=3: must be a repository's name"):
        twins_jax.push_to_hub(model, 3)
    assert (server.created, server.requests) == ([], [])


def test_without_the_package(model, monkeypatch):
    fail_import(monkeypatch, "huggingface_hub")
    with pytest.raises(InputError) as caught:
        twins_jax.push_to_hub(model, "owner/name")
    assert str(caught.value) == "owner/name: huggingface_hub is not installed; install it (the extra `hub`)"
    assert importlib.import_module("twins_jax.port.save")  # needs none
