"""The names of variants as sources of weights: the table, names that are paths too, and advice without a network."""

import sys

import jax
import numpy as np
import pytest
from flax import nnx

import port_weights
import twins_jax
from tests.support.hub import Files, answered_by, http
from tests.support.models import SVT, classifier, named
from twins_jax.config import VARIANTS
from twins_jax.errors import InputError
from twins_jax.paths import weights_source
from twins_jax.port.read import read_weights
from twins_jax.published import PUBLISHED, UPSTREAM, Published

NAMES = [name for name in VARIANTS if name != "twins_svt_tiny"]
ADVICE = (
    "; without a network give the path of a copy: of model.safetensors and config.json from "
    "https://huggingface.co/timm/twins_svt_small.in1k in one folder, or of alt_gvt_small.pth, which the README of "
    f"{UPSTREAM} links to"
)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Working in an empty folder; the server has no files yet."""
    server = Files()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with answered_by(server, tmp_path / "cache", monkeypatch):
        yield server


@pytest.fixture
def published(server, tmp_path, monkeypatch):
    """A small variant whose weights the server has; returns the model."""
    monkeypatch.setitem(VARIANTS, "mini", SVT)
    monkeypatch.setitem(PUBLISHED, "mini", Published("timm/mini.in1k", "mini.pth"))
    model = classifier(SVT, 1000)
    model.preprocessing = twins_jax.Preprocessing(crop=0.9)
    model.save_pretrained(tmp_path / "saved")
    server.files.update({path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()})
    return model


def assert_same(found, expected):
    found, expected = named(found), named(expected)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], array) for name, array in expected.items())


def test_the_table_is_timm_s(timm):
    assert list(PUBLISHED) == NAMES
    for name, weights in PUBLISHED.items():
        theirs = timm.models.get_pretrained_cfg(f"{name}.in1k")
        assert (f"{theirs.hf_hub_id}", theirs.license) == (weights.repository, "apache-2.0")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("server")
def test_a_name_is_a_repository_unless_a_path_has_it(name, tmp_path):
    for source in (name, f"{name}.in1k"):
        assert weights_source("source", source) == f"hf-hub:timm/{name}.in1k"
        assert weights_source("source", f"./{source}") == source
        (tmp_path / "here" / source).mkdir()
        assert weights_source("source", source) == source


def test_published_weights(server, published):
    params = twins_jax.get_params(published)
    model = twins_jax.create_model("mini", pretrained=True, drop_path_rate=0.2)
    assert_same(twins_jax.get_params(model), params)
    assert (model.preprocessing, model.config.drop_path_rate) == (published.preprocessing, 0.2)
    assert_same(twins_jax.get_params(twins_jax.from_pretrained("mini")), params)
    assert server.requests[0] == "HEAD /timm/mini.in1k/resolve/main/model.safetensors"
    backbone = twins_jax.create_backbone("mini", pretrained=True)
    assert_same(twins_jax.get_params(backbone), params["backbone"])
    fresh = twins_jax.get_params(twins_jax.create_model("mini", pretrained=True, num_classes=5, rngs=nnx.Rngs(0)))
    assert fresh.pop("head")["kernel"].shape == (64, 5)
    assert_same(fresh, {part: below for part, below in params.items() if part != "head"})
    bare = twins_jax.get_params(twins_jax.create_model("mini", pretrained=True, num_classes=0))
    assert "head" not in bare
    with pytest.raises(InputError, match=r"^rngs=None: must be given for the fresh head of num_classes=5: "):
        twins_jax.create_model("mini", pretrained=True, num_classes=5)
    with pytest.raises(InputError, match=r"^in_channels=4: must be 3, as in the weights$"):
        twins_jax.create_model("mini", pretrained=True, in_channels=4)


def test_a_file_of_the_name_wins_where_a_path_is_asked_for(published, tmp_path):
    other = jax.tree.map(lambda array: array + 1, twins_jax.get_params(published))
    model = classifier(SVT, 1000)
    twins_jax.set_params(model, other)
    model.save_pretrained(tmp_path / "here" / "mini")
    assert_same(twins_jax.get_params(twins_jax.from_pretrained("mini")), other)
    assert_same(twins_jax.get_params(twins_jax.create_model("mini", pretrained=True)), twins_jax.get_params(published))


@pytest.mark.parametrize("create", [twins_jax.create_model, twins_jax.create_backbone])
def test_arguments_of_create(server, create):
    allowed = f"must be a variant with published weights, one of {', '.join(NAMES)}"
    with pytest.raises(InputError, match=rf"^name='twins_svt_tiny': {allowed}$"):
        create("twins_svt_tiny", pretrained=True)
    with pytest.raises(InputError, match=r"^name='twins_svt_smal': must be one of .*; did you mean twins_svt_small\?$"):
        create("twins_svt_smal", pretrained=True)
    with pytest.raises(InputError, match=r"^pretrained='yes': must be True or False$"):
        create("twins_svt_small", pretrained="yes")
    with pytest.raises(InputError, match=r"^pretrain=True: must be left out, .*; did you mean pretrained\?$"):
        create("twins_svt_small", pretrain=True)
    with pytest.raises(InputError, match=r"^rngs=None: must be nnx\.Rngs with the stream 'params'"):
        create("twins_svt_small")
    assert server.requests == []


@pytest.mark.usefixtures("server")
def test_names_without_weights(tmp_path):
    with pytest.raises(InputError) as caught:
        twins_jax.from_pretrained("twins_svt_tiny")
    assert str(caught.value) == (
        f"source='twins_svt_tiny': must be a file or folder, or a variant with published weights, one of "
        f"{', '.join(NAMES)}"
    )
    with pytest.raises(InputError) as caught:
        read_weights("twins_svt_smal")
    assert str(caught.value) == "twins_svt_smal: No such file or directory; did you mean twins_svt_small?"
    with pytest.raises(InputError) as caught:
        read_weights("owner/name")
    assert (
        str(caught.value) == "owner/name: No such file or directory; a repository of Hugging Face is hf-hub:owner/name"
    )
    for missing in ("./missing", "/missing", "a/b/missing", str(tmp_path / "here" / "missing")):
        with pytest.raises(InputError, match=r": No such file or directory$"):
            read_weights(missing)


@pytest.mark.parametrize("source", ["twins_svt_small", "hf-hub:timm/twins_svt_small.in1k"])
def test_without_a_network(server, source, capsys):
    server.failure = http.ConnectError("unreachable")
    assert port_weights.main([source, "target"]) == 2
    assert capsys.readouterr().err == (
        "error: hf-hub:timm/twins_svt_small.in1k: no connection to https://huggingface.co; check the network: "
        f"ConnectError: unreachable{ADVICE}\n"
    )


@pytest.mark.usefixtures("server")
def test_without_weights_or_package(monkeypatch):
    with pytest.raises(InputError) as caught:
        twins_jax.create_model("twins_svt_small", pretrained=True)
    assert "the repository holds none of model.safetensors, " in str(caught.value)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError) as caught:
        twins_jax.create_model("twins_svt_small", pretrained=True)
    place = "hf-hub:timm/twins_svt_small.in1k"
    assert str(caught.value) == f"{place}: huggingface_hub is not installed; install it (the extra `hub`){ADVICE}"
