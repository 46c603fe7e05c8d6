"""Class names, preprocessing and window_padding: where they come from, and that they travel with the weights."""

import json
import logging
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors
import safetensors.torch
import torch
from flax import nnx

import port_weights
import twins_jax
from twins_jax.config import RuntimeOptions
from twins_jax.errors import InputError
from twins_jax.port.convert import NOTHING_DECLARED, Declared
from twins_jax.port.declared import from_json, from_text, read_folder, to_json, to_text
from twins_jax.port.infer import Inferred
from twins_jax.port.read import read_weights
from twins_jax.preprocess import Preprocessing

NAMES = ("Käse", "\udce9t\udce9", *"23456789")
CONFIG = {
    "workdir": "elsewhere",
    "model": {"name": "twins_svt_tiny", "window_padding": "mask", "dtype": "bfloat16", "drop_path_rate": 0.1},
    "data": {"source": "folder", "image_size": 96, "eval_crop": 0.9, "multi_label": True},
    "optim": {"clip_norm": float("inf")},
}
DATASET = {"class_names": list(NAMES), "train_examples": 20, "eval_examples": 10}
GRAY = Preprocessing(64, mean=(0.5,), std=(0.5,))
DECLARED = Declared("twins_svt_tiny", None, NAMES, Preprocessing(96, 0.9), "mask", True)


@pytest.fixture(scope="module")
def run(tiny_orbax, tmp_path_factory):
    """A training run's folder with a fine-tuned classifier of 10 classes."""
    folder = tmp_path_factory.mktemp("run") / "run"
    (folder / "checkpoints" / "20").mkdir(parents=True)
    shutil.copytree(tiny_orbax, folder / "checkpoints" / "20" / "params")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    return folder


@pytest.fixture
def records(tmp_path):
    """A run's folder without its arrays; the item's folder is returned."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET))
    return tmp_path / "checkpoints" / "20" / "params"


def port(*arguments):
    assert port_weights.main([str(argument) for argument in arguments]) == 0


def assert_declares(model):
    assert model.class_names == NAMES
    assert model.multi_label
    assert model.preprocessing == Preprocessing(image_size=96, crop=0.9)
    assert model.config.window_padding == "mask"
    assert model.config.dtype == np.float32  # rounding, which is no part of the function


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/20"])
def test_a_run(run, place, monkeypatch):
    monkeypatch.chdir(run)
    model = twins_jax.from_pretrained(place or ".")
    assert_declares(model)


def test_what_is_given_wins(run, caplog):
    """The command lines of training give a `window_padding` in any case: another than declared must not go unseen."""
    with caplog.at_level(logging.WARNING):
        model = twins_jax.from_pretrained(run, window_padding="zero", num_classes=3, rngs=nnx.Rngs(0))
        twins_jax.from_pretrained(run, window_padding="mask")
    (message,) = caplog.messages
    assert message.startswith(f"{run}: window_padding='zero' is given, and the weights declare 'mask': outputs differ")
    assert model.config.window_padding == "zero"
    assert (model.class_names, model.multi_label) == (None, False)  # of the old head
    assert model.preprocessing == Preprocessing(image_size=96, crop=0.9)
    assert twins_jax.from_pretrained(run, num_classes=10).class_names == NAMES
    assert twins_jax.backbone_from_pretrained(run).config.window_padding == "mask"


def test_round_trip(run, tmp_path, capsys):
    """Run -> PyTorch -> Orbax -> ours.safetensors -> PyTorch, and each of them to a model."""
    timms, orbax, ours = tmp_path / "timm.safetensors", tmp_path / "orbax", tmp_path / "ours.safetensors"
    for source, target in ((run, timms), (timms, orbax), (timms, ours), (orbax, tmp_path / "back.safetensors")):
        port(source, target)
        assert_declares(twins_jax.from_pretrained(target))
    port(run, tmp_path / "copied")
    assert (tmp_path / "copied" / "config.json").read_text() == (orbax / "config.json").read_text()
    with safetensors.safe_open(timms, "np") as file, safetensors.safe_open(tmp_path / "back.safetensors", "np") as back:
        assert file.metadata() == back.metadata()
        assert file.metadata().keys() == {"format", "twins_jax"}
        assert file.metadata()["format"] == "pt"

    capsys.readouterr()
    assert port_weights.main(["--inspect", str(ours)]) == 0
    facts = dict(line.split(":", 1) for line in capsys.readouterr().out.split("\n\n")[0].splitlines())
    assert facts["classes"].strip() == r"10: 'Käse', '\udce9t\udce9', '2', ..."
    assert facts["images"].strip() == "96 x 96 pixels, center crop 0.9, bicubic"
    assert facts["mean, std"].strip() == "0.485, 0.456, 0.406; 0.229, 0.224, 0.225"
    assert facts["windows"].strip() == 'window_padding="mask"'

    port(timms, tmp_path / "again", "--overwrite")  # a folder with a config.json is still one of parameters
    port(timms, tmp_path / "again", "--overwrite")
    params = twins_jax.get_params(twins_jax.from_pretrained(run))
    with ocp.StandardCheckpointer() as checkpointer:  # Orbax passes over the file
        restored = checkpointer.restore(orbax, params)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, restored))


def test_a_pth_has_no_place_for_them(run, tmp_path):
    port(run, tmp_path / "a.pth")
    assert torch.load(tmp_path / "a.pth", weights_only=True).keys() == read_weights(tmp_path / "a.pth").tensors.keys()
    model = twins_jax.from_pretrained(tmp_path / "a.pth")
    assert (model.class_names, model.preprocessing, model.config.window_padding) == (None, None, "zero")


def test_weights_alone_are_written_as_before(tiny_pth, tmp_path):
    port(tiny_pth, tmp_path / "orbax")
    port(tiny_pth, tmp_path / "a.safetensors")
    assert not (tmp_path / "orbax" / "config.json").exists()
    with safetensors.safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.metadata() == {"format": "jax"}


def test_a_snapshot(tiny, tmp_path):
    """As timm writes them; what the file of weights says beside that fills the rest."""
    about = {"label_names": ["wrong"] * 10, "window_padding": "mask"}
    safetensors.torch.save_file(tiny, tmp_path / "model.safetensors", metadata={"twins_jax": json.dumps(about)})
    config = {
        "architecture": "twins_svt_tiny",
        "num_classes": 10,
        "label_names": list(NAMES),
        "pretrained_cfg": {"input_size": [3, 256, 256], "crop_pct": 0.9, "mean": [0.5] * 3, "std": [0.25] * 3}
        | {"interpolation": "bilinear", "crop_mode": "center", "fixed_input_size": False, "num_classes": 1000},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = twins_jax.from_pretrained(tmp_path)
    assert model.class_names == NAMES
    assert model.preprocessing == Preprocessing(256, 0.9, (0.5,) * 3, (0.25,) * 3, "bilinear")
    assert model.config.window_padding == "mask"
    (tmp_path / "config.json").write_text(json.dumps(config | {"label_names": ["a", "b"]}))
    with pytest.raises(InputError, match=r"declares 2 class names, its weights are of 10$"):
        twins_jax.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, NOTHING_DECLARED),
        ({"architecture": "a", "input_size": [3, 64, 64]}, Declared("a", preprocessing=Preprocessing(64))),
        ({"labels": ["x"], "num_classes": 1}, Declared(num_classes=1, class_names=("x",))),
        ({"pretrained_cfg": {"label_names": ["x"], "crop_pct": 0.5}}, Declared(class_names=("x",))),
        ({"label_names": ["x"], "pretrained_cfg": {"label_names": ["y"]}}, Declared(class_names=("x",))),
        ({"input_size": [1, 64, 64], "mean": [0.5], "std": [0.5]}, Declared(preprocessing=GRAY)),
        ({"input_size": [3, 64, 64], "crop_pct": None, "crop_mode": None}, Declared(preprocessing=Preprocessing(64))),
    ],
)
def test_forms_of_timm(config, expected):
    assert from_json(config, "config.json") == expected


@pytest.mark.parametrize("change", [{"input_size": [3, 64, 96]}, {"crop_mode": "squash"}, {"interpolation": "random"}])
def test_preprocessing_that_has_no_words_here_is_left_out(change, caplog):
    with caplog.at_level(logging.WARNING):
        assert from_json({"input_size": [3, 64, 64]} | change, "config.json") == NOTHING_DECLARED
    assert caplog.messages == ["config.json: its preprocessing is left out: twins_jax has only square center crops"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"label_names": "ab"}, "label_names='ab': must be a list of strings"),
        ({"label_names": [1]}, "label_names=[1]: must be a list of strings"),
        ({"label_names": {"0": "a"}}, "label_names={'0': 'a'}: must be a list of strings"),
        ({"window_padding": "ones"}, "window_padding='ones': must be one of zero, mask"),
        ({"window_padding": []}, "window_padding=[]: must be one of zero, mask"),
        ({"pretrained_cfg": 3}, "pretrained_cfg=3: must be an object"),
        ({"input_size": 64}, "input_size=64: must be channels, height and width"),
        ({"input_size": [3, 7, 7]}, "image_size=7: must be an integer from 32"),
        ({"input_size": [3, 64, 64], "crop_pct": "x"}, "crop='x': must be a fraction in (0, 1]"),
        ({"input_size": [3, 64, 64], "mean": 0.5}, "mean=0.5: must be a number for each channel"),
    ],
)
def test_values_that_cannot_be_meant(config, message):
    with pytest.raises(InputError) as caught:
        from_text(json.dumps(config), "a.safetensors: metadata")
    assert str(caught.value) == f"a.safetensors: metadata: {message}"


def test_both_ways():
    for classes in (10, None):
        model = Inferred("twins_svt_tiny", 3, classes, False)
        expected = DECLARED._replace(
            num_classes=classes, **({} if classes else {"class_names": None, "multi_label": None})
        )
        assert from_json(to_json(DECLARED, model), "here") == expected
        assert from_text(to_text(DECLARED, model), "here") == expected
        assert to_text(Declared("twins_svt_tiny", 10), model) is None


@pytest.mark.parametrize("damaged", ["", "{", "[]", '"x"', "3", "\x00", "[" * 100_000, b"\xff\xfe{}"])
@pytest.mark.parametrize("name", ["config.json", "dataset.json"])
def test_damaged_records(records, name, damaged):
    path = records.parents[2] / name
    path.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    with pytest.raises(InputError) as caught:
        read_folder(str(records))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"^a: (is no JSON: |must hold a JSON object, holds )"):
        from_text(damaged if isinstance(damaged, str) else "[", "a")


def test_records_of_other_forms(records):
    """Of older runs, and of other tasks."""
    root = records.parents[2]
    assert read_folder(str(records)) == DECLARED
    (root / "dataset.json").unlink()
    assert read_folder(str(records)) == DECLARED._replace(class_names=None)
    (root / "config.json").write_text(json.dumps({"model": {"name": "twins_svt_tiny"}, "data": {"image_size": 96}}))
    assert read_folder(str(records)) == Declared("twins_svt_tiny")
    for key in ("model", "data"):
        (root / "config.json").write_text(json.dumps({key: 3}))
        with pytest.raises(InputError, match=f"config.json: {key}=3: must be an object"):
            read_folder(str(records))
    (root / "config.json").unlink()
    assert read_folder(str(records)) == NOTHING_DECLARED
    (root / "dataset.json").mkdir()
    with pytest.raises(InputError, match=r"dataset\.json: cannot be read: Is a directory"):
        read_folder(str(records))


def test_every_option_of_a_run_is_decided():
    """A new option must be one that a run's folder passes on, or be listed here."""
    leave_the_function = {"drop_path_rate", "dropout_rate", "attention_implementation", "dtype", "remat"}
    assert RuntimeOptions.__annotations__.keys() == leave_the_function | {"window_padding"}
