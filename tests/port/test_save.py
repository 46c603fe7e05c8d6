"""Folders of save_pretrained are read back bit by bit, by timm too."""

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from flax import nnx

import port_weights
import twins_jax
from tests.support.compilation import fast_compilation
from tests.support.models import SVT, named, random_array, random_module, relative_error, run
from tests.support.saving import CLASS_NAMES, FILES, PREPROCESSING, content, described, mini
from twins_jax.config import TwinsOptions
from twins_jax.errors import InputError
from twins_jax.port.read import read_weights

pytestmark = pytest.mark.usefixtures("mini_variant")


@pytest.fixture
def model():
    return described()


def assert_same(found, expected):
    found, expected = named(twins_jax.get_params(found)), named(twins_jax.get_params(expected))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("source", ["", "model.safetensors"])
def test_round_trip(model, tmp_path, source):
    model.multi_label = True
    model.save_pretrained(tmp_path / "new" / "folder")
    assert sorted(content(tmp_path / "new" / "folder")) == FILES
    back = twins_jax.from_pretrained(tmp_path / "new" / "folder" / source)
    assert_same(back, model)
    assert (back.class_names, back.preprocessing, back.num_classes) == (CLASS_NAMES, PREPROCESSING, 10)
    assert back.multi_label
    assert back.config == model.config


@pytest.mark.parametrize(("num_classes", "in_channels", "dtype"), [(0, 12, jnp.bfloat16), (3, 1, jnp.float16)])
def test_round_trip_of_options(tmp_path, num_classes, in_channels, dtype):
    model = mini(num_classes, in_channels=in_channels, param_dtype=dtype)
    twins_jax.save_pretrained(model, tmp_path)  # which is empty
    with safetensors.safe_open(tmp_path / "model.safetensors", "np") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {jnp.dtype(dtype)}  # noqa: SIM118
    back = twins_jax.from_pretrained(tmp_path, param_dtype=dtype)
    assert_same(back, model)
    assert (back.num_classes, back.config) == (num_classes, model.config)
    assert (back.class_names, back.preprocessing) == (None, None)


@pytest.mark.parametrize("stage_norms", [False, True])
def test_round_trip_of_a_backbone(tmp_path, stage_norms):
    options = {"stage_norms": stage_norms, "window_padding": "mask"}
    model = random_module(lambda: twins_jax.create_backbone("mini", rngs=nnx.Rngs(0), **options))
    model.save_pretrained(tmp_path)
    back = twins_jax.backbone_from_pretrained(tmp_path)
    assert_same(back, model)
    assert back.config == model.config
    with pytest.raises(InputError, match="use backbone_from_pretrained"):
        twins_jax.from_pretrained(tmp_path)


def test_every_option_is_decided():
    """A new option must be saved, be told by the weights, or be listed here."""
    leave_the_function = {"drop_path_rate", "dropout_rate", "attention_implementation", "dtype", "remat"}
    told_by_weights = {"in_channels", "stage_norms", "param_dtype"}
    assert TwinsOptions.__annotations__.keys() == leave_the_function | told_by_weights | {"window_padding"}


def test_port_weights_takes_it_there_and_back(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    assert port_weights.main([str(tmp_path / "saved"), str(tmp_path / "orbax")]) == 0
    assert port_weights.main([str(tmp_path / "orbax"), str(tmp_path / "back.safetensors")]) == 0
    files = [tmp_path / "saved" / "model.safetensors", tmp_path / "back.safetensors"]
    saved, back = (safetensors.torch.load_file(file) for file in files)
    assert saved.keys() == back.keys()
    assert all(torch.equal(saved[name], back[name]) for name in saved)
    assert twins_jax.from_pretrained(files[1]).class_names == CLASS_NAMES


@pytest.fixture
def timm_mini(timm, monkeypatch):
    """timm, with a model of this variant."""

    def entry(pretrained=False, **options):
        stages = {"depths": SVT.depths, "sr_ratios": SVT.sub_sampling_ratios, "wss": [SVT.window_size] * 4}
        stages |= {"embed_dims": SVT.embed_dims, "num_heads": SVT.num_heads, "mlp_ratios": SVT.mlp_ratios}
        return timm.models.twins._create_twins("mini", pretrained=pretrained, **stages, **options)

    monkeypatch.setitem(timm.models._registry._model_entrypoints, "mini", entry)
    return timm


def test_timm_computes_the_same(timm_mini, model, tmp_path):
    model.save_pretrained(tmp_path)
    theirs = timm_mini.create_model(f"local-dir:{tmp_path}", pretrained=True).eval().double()
    inputs = random_array(1, 224, 224, 3)  # of maps that windows tile: "mask" is as timm's padding there
    with torch.no_grad():
        truth = theirs(torch.from_numpy(inputs).double().permute(0, 3, 1, 2)).numpy()
    with jax.default_matmul_precision("highest"), fast_compilation():
        assert relative_error(run(model, inputs), truth) < 2e-6
    assert theirs.pretrained_cfg["label_names"] == list(CLASS_NAMES)
    config = timm_mini.data.resolve_model_data_config(theirs)
    expected = {"input_size": (3, 96, 96), "crop_pct": 0.9, "crop_mode": "center", "interpolation": "bilinear"}
    found = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    assert found == expected | {"mean": PREPROCESSING.mean, "std": PREPROCESSING.std}


def test_timm_adapts_it(timm_mini, tmp_path, caplog):
    """To other classes and channels, as it adapts its own."""
    model = mini()
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        theirs = timm_mini.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=7, in_chans=1)
    assert caplog.messages == []
    assert theirs.head.weight.shape == (7, 64)
    kernel = np.asarray(twins_jax.get_params(model)["backbone"]["stages"]["0"]["patch_embed"]["proj"]["kernel"])
    summed = theirs.patch_embeds[0].proj.weight.detach().numpy()
    np.testing.assert_allclose(summed, kernel.sum(2, keepdims=True).transpose(3, 2, 0, 1), rtol=1e-6)
    mini(0, in_channels=4).save_pretrained(tmp_path, overwrite=True)
    theirs = timm_mini.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert (theirs.num_classes, theirs.patch_embeds[0].proj.in_channels) == (0, 4)


def test_it_is_what_timm_saves(timm, make_model, tmp_path):
    """A published variant: timm's folder, loaded and saved again, holds the same; and timm loads that."""
    theirs = make_model("twins_svt_small")
    with pytest.MonkeyPatch.context() as patch:  # timm refuses to save without huggingface_hub, and asks nothing of it
        patch.setattr("timm.models._hub._has_hf_hub", True)
        timm.models.save_for_hf(theirs, tmp_path / "timm", {"label_names": list("abcdefghij")}, safe_serialization=True)
    model = twins_jax.from_pretrained(tmp_path / "timm")
    model.save_pretrained(tmp_path / "ours")
    saved, expected = (safetensors.torch.load_file(tmp_path / name / FILES[1]) for name in ("ours", "timm"))
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in expected)
    ours, config = (json.loads((tmp_path / name / FILES[0]).read_text()) for name in ("ours", "timm"))
    shared = {key: value for key, value in config["pretrained_cfg"].items() if key in ours["pretrained_cfg"]}
    assert shared == ours["pretrained_cfg"]
    assert {key: config[key] for key in ("architecture", "num_classes", "label_names")} == {
        key: ours[key] for key in ("architecture", "num_classes", "label_names")
    }
    back = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())


def test_a_snapshot_in_hugging_face_s_cache(model, tmp_path):
    """Files of a snapshot are links to blobs, named by their hashes."""
    model.save_pretrained(tmp_path / "saved")
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / ("0" * 40), tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, name in enumerate(FILES):
        shutil.copy(tmp_path / "saved" / name, blobs / f"{i}")
        (snapshot / name).symlink_to(f"../../blobs/{i}")
    before = content(blobs)
    back = twins_jax.from_pretrained(snapshot)
    assert_same(back, model)
    assert (back.class_names, back.preprocessing, back.config) == (CLASS_NAMES, PREPROCESSING, model.config)
    mini(3).save_pretrained(snapshot, overwrite=True)  # in the place of the links, not of what they lead to
    assert content(blobs) == before
    assert twins_jax.from_pretrained(snapshot).num_classes == 3


def test_a_second_model_in_the_folder(model, tmp_path):
    folder = tmp_path / "folder"
    model.save_pretrained(folder)
    (folder / "README.md").write_text("mine")
    before = content(folder)
    with pytest.raises(InputError) as caught:
        model.save_pretrained(folder)
    assert str(caught.value) == f"{folder}: holds a model already, and is only overwritten with overwrite=True"
    assert content(folder) == before
    mini(3).save_pretrained(folder, overwrite=True)
    back = twins_jax.from_pretrained(folder)
    assert (back.num_classes, back.class_names, back.preprocessing) == (3, None, None)
    assert (folder / "README.md").read_text() == "mine"
    assert sorted(content(folder)) == ["README.md", *FILES]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_sharded_parameters_are_gathered(tmp_path):
    mini().save_pretrained(tmp_path / "one")
    code = (
        "import jax, twins_jax; from tests.support.models import SVT, classifier;"
        "from twins_jax.config import VARIANTS;"
        "from twins_jax.sharding import make_mesh, shardings; VARIANTS['mini'] = SVT;"
        "model = classifier(SVT); params = twins_jax.get_params(model);"
        "twins_jax.set_params(model, jax.device_put(params, shardings(params, make_mesh(fsdp=2))));"
        "assert model.head.kernel.get_value().addressable_shards[0].data.shape == (32, 10);"
        f"model.save_pretrained({str(tmp_path / 'two')!r})"
    )
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, two = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_preprocessing_of_other_channels(tmp_path):
    """As timm's snapshots of models of other channels have it, and in NumPy's numbers: nothing of it is lost."""
    model = mini(in_channels=1)
    model.preprocessing = dataclasses.replace(PREPROCESSING, image_size=np.int64(96), crop=np.float32(0.875))
    model.save_pretrained(tmp_path)
    assert twins_jax.from_pretrained(tmp_path).preprocessing == dataclasses.replace(PREPROCESSING, crop=0.875)
    assert json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]["input_size"] == [1, 96, 96]
    assert read_weights(tmp_path).declared.num_classes == 10
