"""save_pretrained writes nothing by half, over nothing of others, and no model that would not come back."""

import dataclasses
import errno
import os

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import twins_jax
from tests.support.models import SVT
from tests.support.saving import FILES, content, described, mini, parts
from twins_jax.errors import InputError
from twins_jax.layers import BatchNorm, Linear

pytestmark = pytest.mark.usefixtures("mini_variant")


@pytest.fixture
def model():
    return described()


@pytest.mark.parametrize("others", [["notes.txt"], [".git"], ["config.json"], ["README.md", "config.json"]])
@pytest.mark.parametrize("overwrite", [False, True])
def test_folders_of_others_are_left_alone(model, tmp_path, others, overwrite):
    folder = tmp_path / "folder"
    folder.mkdir()
    if others == [".git"]:
        model.save_pretrained(folder)
    for name in others:
        (folder / name).write_text("theirs")
    before = content(folder)
    with pytest.raises(InputError) as caught:
        model.save_pretrained(folder, overwrite=overwrite)
    held = f"{', '.join(others)}; save into a new folder"
    assert str(caught.value) == f"{folder}: holds more than a saved model, and is never overwritten: {held}"
    assert content(folder) == before


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("place", ["safetensors.numpy.save_file", "pathlib.Path.write_text", "os.replace", "os.mkdir"])
def test_a_write_that_fails_leaves_nothing_new(model, tmp_path, monkeypatch, place, exists):
    folder = tmp_path / "folder"
    if exists:
        model.save_pretrained(folder)
    before = content(folder) if exists else {}

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(place, fail)
        with pytest.raises(InputError, match=rf"^{folder}: could not be written: No space left on device$"):
            mini(3).save_pretrained(folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == (["folder"] if exists else [])
    assert not exists or content(folder) == before


def test_ctrl_c_leaves_nothing_new(model, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.numpy.save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_place_that_is_closed_to_us(tmp_path, monkeypatch, number):
    def fail(path, *_, **__):
        raise OSError(number, os.strerror(number), os.fspath(path))

    monkeypatch.setattr("pathlib.Path.mkdir", fail)
    with pytest.raises(InputError) as caught:
        mini().save_pretrained(tmp_path / "a" / "b")
    assert str(caught.value) == f"{tmp_path}/a/b: could not be written: {tmp_path}/a: {os.strerror(number)}"


def test_paths(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "file").touch()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for folder, message in {
        ".": r"^\.: holds more than a saved model",
        "file": "must be the path of a folder, which may be a new one",
        "file/below": "must be a path that can be used: Not a directory",
        "hf-hub:owner/name": "must be a path on this machine",
        "gs://bucket/a": "must be a path on this machine",
        None: "must be text",
    }.items():
        with pytest.raises(InputError, match=message):
            model.save_pretrained(folder)
    model.save_pretrained("~/models/a")
    model.save_pretrained("link")
    assert (tmp_path / "link").is_symlink()
    assert sorted(content(tmp_path / "real")) == sorted(content(tmp_path / "home" / "models" / "a")) == FILES
    monkeypatch.chdir(tmp_path / "real")
    with pytest.raises(InputError, match=r"^\.: must not be the working folder; name a folder in it$"):
        model.save_pretrained(".", overwrite=True)


def changed(change):
    model = mini()
    change(model)
    return model


def set_bias(model, value):
    model.norm.bias.set_value(value)


REFUSED = {
    "no model": (lambda: 3, r"^model=<class 'int'>: must be a .*, a TwinsDetector or a TwinsBackbone$"),
    "a layer": (lambda: Linear(2, 3, rngs=nnx.Rngs(0)), r"^model=<class '.*Linear'>: must be a TwinsClassifier"),
    "params": (lambda: twins_jax.get_params(mini()), r"^model=<class 'dict'>: must be"),
    "no variant": (
        lambda: changed(lambda model: setattr(model, "config", dataclasses.replace(SVT, num_heads=(1, 2, 3, 1)))),
        r"^model\.config: must be of a variant, one of .*; is embed_dims=.*, num_heads=\(1, 2, 3, 1\), ",
    ),
    "no values": (
        lambda: nnx.eval_shape(lambda: twins_jax.create_model("mini", rngs=nnx.Rngs(0))),
        r"^model: \d+ parameters do not fit mini\n  ! .* holds ShapeDtypeStruct, expected an array \(",
    ),
    "statistics": (
        lambda: changed(lambda model: setattr(model, "bn", BatchNorm(4))),
        r"^model: 4 parameters do not fit mini\n(  \+ bn/\w+ \(4,\) is left over\n?){4}$",
    ),
    "a layer more": (
        lambda: changed(lambda model: setattr(model, "head2", Linear(2, 3, rngs=nnx.Rngs(0)))),
        r"^model: 2 parameters do not fit mini\n  \+ head2/.* is left over",
    ),
    "a head of others": (
        lambda: changed(lambda model: setattr(model, "head", Linear(64, 3, rngs=nnx.Rngs(0)))),
        r"head/kernel has shape \(64, 3\), expected \(64, 10\)",
    ),
    "no head": (lambda: changed(lambda model: delattr(model, "head")), r"head/kernel \(64, 10\) is missing"),
    "NaN": (
        lambda: changed(lambda model: set_bias(model, model.norm.bias[...].at[3].set(jnp.nan))),
        r"^model: 1 parameters do not fit mini\n  ! norm/bias holds NaN or infinity$",
    ),
    "integers": (
        lambda: changed(lambda model: set_bias(model, jnp.zeros(64, jnp.int32))),
        r"norm/bias has dtype int32, expected floating-point$",
    ),
    "float8": (
        lambda: changed(lambda model: set_bias(model, jnp.zeros(64, jnp.float8_e4m3fn))),
        r"norm/bias has dtype float8_e4m3fn, expected one of float16, bfloat16, float32, float64$",
    ),
    "no config": (
        lambda: changed(lambda model: setattr(model, "config", None)),
        r"^config=None: must be a TwinsConfig",
    ),
    "no count": (
        lambda: changed(lambda model: setattr(model, "num_classes", None)),
        r"^model.num_classes=None: must be",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_would_not_come_back(tmp_path, name):
    make, message = REFUSED[name]
    model = make()
    with pytest.raises(InputError, match=message):
        twins_jax.save_pretrained(model, tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_within_a_transformation(tmp_path):
    graphdef, params = parts(10)

    @jax.jit
    def traced(params):
        twins_jax.save_pretrained(twins_jax.merge_model(graphdef, params), tmp_path / "a")

    with pytest.raises(InputError, match="is traced by a transformation of JAX: save the model outside of it"):
        traced(params)
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_other_processes(tmp_path, monkeypatch):
    model = mini()
    kind = type(model.norm.bias.get_value())
    monkeypatch.setattr(kind, "is_fully_addressable", property(lambda _: False))
    monkeypatch.setattr(kind, "is_fully_replicated", property(lambda _: False))
    with pytest.raises(
        InputError, match=r"is sharded over processes: gather the parameters before, as jax\.experimental"
    ):
        model.save_pretrained(tmp_path / "a")
