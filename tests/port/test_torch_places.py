"""Where the weights are in a file of torch's: in modules, in NumPy's arrays, within other objects."""

import argparse
import collections
import dataclasses
import types

import numpy as np
import pytest
import torch

from tests.support.torch_files import FORMATS, name_first, rewrite, save
from twins_jax.errors import InputError
from twins_jax.port.numpy_array import rebuild
from twins_jax.port.torch_io import _candidates, read_torch
from twins_jax.port.unpickle import Placeholder


@FORMATS
def test_a_pickled_module_is_its_state_dict(make_model, tiny, tmp_path, is_zip):
    save({"epoch": 3, "ema": make_model("twins_svt_tiny")}, tmp_path / "a.pth", is_zip)
    contents = read_torch(str(tmp_path / "a.pth"))
    assert contents.container == "ema"
    assert contents.tensors.keys() == tiny.keys()
    for name, value in tiny.items():
        np.testing.assert_array_equal(contents.tensors[name], value.numpy())
    assert "timm.models.twins.Twins" in contents.unread
    save(torch.nn.ReLU(), tmp_path / "b.pth", is_zip)
    with pytest.raises(InputError, match=r"holds a pickled module, of torch.*ReLU, without tensors \(save model"):
        read_torch(str(tmp_path / "b.pth"))


ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big-endian": np.arange(3, dtype=">i4"),
    "half": np.float16([1, -0.0, np.nan]),
    "scalar": np.array(3.5),
    "empty": np.zeros((0, 4), np.uint8),
    "flags": np.array([True, False]),
}


@pytest.mark.parametrize(("package", "protocol"), [("_core", 2), ("_core", 4), ("_core", 5), ("core", 2)])
def test_numpy_arrays_are_rebuilt_as_data(tmp_path, package, protocol):
    state = {"blocks.0.0.norm1.weight": np.ones(2, np.float32)} | ARRAYS
    save({"model": state}, tmp_path / "new.pth", pickle_protocol=protocol)

    def rename(member, data):
        is_pickle = member.endswith("data.pkl") and protocol == 2  # which has names as lines, of any length
        return data.replace(b"numpy._core.", f"numpy.{package}.".encode()) if is_pickle else data

    rewrite(tmp_path / "new.pth", tmp_path / "a.pth", rename)
    contents = read_torch(str(tmp_path / "a.pth"))
    assert list(contents.tensors) == list(state)
    assert contents.unread == ()
    for name, array in state.items():
        np.testing.assert_array_equal(contents.tensors[name], array, strict=array.dtype.isnative)


def test_numpy_arrays_of_other_kinds_are_refused_or_records(tmp_path):
    for array in (np.array([{}]), np.array(["text"]), np.zeros(2, "f4,i4")):
        save(name_first({"a.weight": array}), tmp_path / "a.pth")
        with pytest.raises(InputError, match=r"a\.weight is no plain tensor: it is a NumPy array of other than plain"):
            read_torch(str(tmp_path / "a.pth"))
        save(name_first({"history": array}), tmp_path / "a.pth")
        assert read_torch(str(tmp_path / "a.pth")).ignored == ("history",)


@pytest.mark.parametrize(
    ("shape", "data"),
    [((3,), b"1234"), ((-1,), b"1234"), ((1 << 40,) * 3, b""), ((1,), "1234"), ("1", b"1234"), (1, 1)],
)
def test_numpy_arrays_of_other_than_their_bytes_are_refused(shape, data):
    dtype = Placeholder("numpy.dtype", ("f4", False, True), (3, "<", None, None, None, -1, -1, 0))
    value = Placeholder("numpy.core.multiarray._reconstruct", (), (1, shape, dtype, False, data))
    for damaged in (value, Placeholder(value.name), Placeholder("numpy._core.numeric._frombuffer", (data, dtype))):
        with pytest.raises(ValueError, match="NumPy array"):
            rebuild(damaged)


@dataclasses.dataclass
class Trainer:
    model: object


class Compiled:
    """Is pickled as `torch.compile`'s modules are: by a call with the module."""

    def __init__(self, module):
        self.module = module

    def __reduce__(self):
        return Compiled, (self.module, "context")


FURTHER_IN = {
    "tuple": (lambda state: (state, 3), "0"),
    "list": (lambda state: [state, {"step": 3}], "0"),
    "list in a dict": (lambda state: {"models": [state]}, "models.0"),
    "three deep": (lambda state: {"a": {"b": {"c": state}}}, "a.b.c"),
    "Namespace": (lambda state: argparse.Namespace(model=state), "model"),
    "SimpleNamespace": (lambda state: types.SimpleNamespace(model=state), "model"),
    "dataclass": (lambda state: Trainer(state), "model"),
    "object in a dict": (lambda state: {"trainer": Trainer([state])}, "trainer.model.0"),
    "compiled": (lambda state: Compiled(state), ""),
    "two names": (lambda state: {"student": state, "teacher": state}, "student"),
}


@FORMATS
@pytest.mark.parametrize("kind", FURTHER_IN)
def test_state_dicts_are_found_further_in(tmp_path, is_zip, kind):
    wrap, container = FURTHER_IN[kind]
    save(wrap(name_first({"x": torch.arange(3)})), tmp_path / "a.pth", is_zip)
    contents = read_torch(str(tmp_path / "a.pth"))
    assert contents.container == container
    np.testing.assert_array_equal(contents.tensors["x"], np.arange(3))


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_module_is_its_state_dict(tmp_path):
    module = torch.nn.Sequential(collections.OrderedDict(blocks=torch.nn.Linear(2, 3)))
    save(torch.compile(module), tmp_path / "a.pth")
    assert [name.removeprefix("_orig_mod.") for name in read_torch(str(tmp_path / "a.pth")).tensors] == [
        "blocks.weight",
        "blocks.bias",
    ]


def test_a_file_with_tensors_is_not_said_to_have_none(tmp_path):
    save({3: {"x": torch.ones(1)}}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="holds a dict with tensors in no state dict: must"):
        read_torch(str(tmp_path / "a.pth"))


def test_keys_that_are_no_names_are_ignored(tmp_path):
    keys = [3, 1 << 20_000, 1.5, None, (1, "a"), "text"]
    save({"model": name_first({key: torch.ones(1) for key in keys})}, tmp_path / "a.pth")
    contents = read_torch(str(tmp_path / "a.pth"))
    assert list(contents.tensors) == ["blocks.0.0.norm1.weight", "text"]
    assert contents.ignored == tuple(f"a key of type {kind}" for kind in ("int", "int", "float", "NoneType", "tuple"))


def test_a_module_within_itself_ends():
    state = {"_parameters": {}, "_modules": {}}
    module = Placeholder("Loop", state=state)
    state["_modules"] |= dict.fromkeys("abc", module)
    assert len(list(_candidates({"model": module}))) == 2
