"""The reader of torch's files against torch.load, and pickles that are hostile or larger than they look."""

import argparse
import collections
import enum
import os
import pathlib
import pickle
import struct
import sys
import tarfile
import zipfile
from io import BytesIO

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.support.torch_files import FORMATS, name_first, rewrite, save
from twins_jax.errors import InputError
from twins_jax.port.torch_file import Span, Storage, TorchFile, open_torch_file
from twins_jax.port.torch_io import _candidates, read_torch, to_torch
from twins_jax.port.torch_tensor import FUNCTIONS, NoPlainTensorError, Tensor, to_numpy
from twins_jax.port.unpickle import Placeholder, UnpickleError, unpickle

DTYPES = [
    *(torch.float16, torch.float32, torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.bool),
    *(torch.complex64, torch.complex128),
]

WITHOUT_STORAGE = (torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32)


@FORMATS
def test_tensors_are_bit_for_bit_those_of_torch(tmp_path, is_zip):
    base = torch.arange(-30, 30).reshape(3, 4, 5)
    with_attribute = torch.nn.Parameter(torch.ones(3))
    with_attribute.no_decay = True
    # torch writes old files of the dtypes without a class of storage, but cannot read them.
    state = {f"{dtype}": base.to(dtype) for dtype in DTYPES if is_zip or dtype not in WITHOUT_STORAGE}
    state |= {
        "transposed": base.float().mT,
        "sliced": base.double()[1:, ::2, 3],
        "the same storage": base.view(-1)[7:30],
        "parameter": torch.nn.Parameter(base.float()),
        "parameter with attributes": with_attribute,
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "bits": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
    }
    save({"model": state}, tmp_path / "a.pth", is_zip)
    expected = torch.load(tmp_path / "a.pth")["model"]
    found = read_torch(str(tmp_path / "a.pth")).tensors
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        array = np.ascontiguousarray(found[name])
        assert found[name].shape == tensor.shape, name
        assert to_torch(array).dtype == tensor.dtype, name
        assert array.tobytes() == bytes(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()), name


def test_big_endian_files(tmp_path):
    state = {str(dtype): torch.arange(9).to(dtype) for dtype in DTYPES}
    for name, tensor in state.items():
        save({"x": tensor}, tmp_path / "little.pth")
        part = tensor.dtype.itemsize // (2 if tensor.is_complex() else 1)

        def change(member, data, part=part):
            if member.endswith("/byteorder"):
                return b"big"
            return np.frombuffer(data, f"<u{part}").byteswap().tobytes() if "/data/" in member else data

        rewrite(tmp_path / "little.pth", tmp_path / "big.pth", change)
        little, big = (read_torch(str(tmp_path / f"{order}.pth")).tensors["x"] for order in ("little", "big"))
        assert little.dtype == big.dtype, name
        assert little.tobytes() == big.tobytes(), name


class StorageOf:
    def __init__(self, key, size):
        self.id = ("storage", torch.FloatStorage, key, "cpu", size, None)


class TensorOf:
    def __init__(self, key, size):
        self.storage, self.size = StorageOf(key, size), size

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (self.storage, self.size - 2, (2,), (1,), False, None)


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.id if isinstance(obj, StorageOf) else None


def test_old_files_of_more_than_4_gib(tmp_path):
    """Offsets have 64 bits; the file has a hole in it, which takes no space on the disk."""
    size = (5 << 30) // 4
    with open(tmp_path / "a.pth", "wb") as file:
        for value in (0x1950A86A20F9469CFC6C, 1001, {}):
            pickle.dump(value, file, 2)
        Pickler(file, 2).dump({"x": TensorOf("0", size), "y": TensorOf("1", 2)})
        pickle.dump(["0", "1"], file, 2)
        file.write(struct.pack("<q", size))
        file.seek(4 * size - 8, os.SEEK_CUR)
        file.write(struct.pack("<2fq2f", 1, 2, 2, 3, 4))
    opened = open_torch_file(str(tmp_path / "a.pth"), FUNCTIONS)
    np.testing.assert_array_equal(to_numpy(opened, opened.value["y"], {}), np.array([3, 4], np.float32))
    assert opened.spans["1"].start > 5 << 30


def test_zip_members_with_64_bit_sizes(tmp_path):
    save({"x": torch.arange(3.0)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
        for name in old.namelist():
            with new.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
                member.write(old.read(name))
    np.testing.assert_array_equal(read_torch(str(tmp_path / "b.pth")).tensors["x"], np.arange(3.0))


class Reduces:
    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


class Color(enum.Enum):
    RED = 1


class Meter:
    def __init__(self):
        self.history = collections.deque([np.float64(0.5)], maxlen=3)
        self.array = np.arange(4)


class Config(dict):
    pass


def python_objects():
    config = Config(lr=0.1)
    config.frozen = {1, 2}
    return [
        *(argparse.Namespace(output=pathlib.Path("/runs")), pathlib.PurePosixPath("a"), Color.RED, Meter(), config),
        *(
            np.float32(0.5),
            np.arange(3),
            {1, 2},
            frozenset((1,)),
            b"bytes",
            bytearray(b"bytes"),
            1j,
            range(3),
            slice(1),
        ),
        *(collections.Counter("abc"), collections.defaultdict(list, a=[1]), torch.device("cpu"), torch.float16, len),
        *(torch.Size((1, 2)), torch.Generator, 10**400, -1, 1.5, None, True, "text", {(1, "a"): 1, ((1,),): 2}),
    ]


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_everything_beside_the_weights_is_data(tmp_path, is_zip, protocol):
    value = {"model": name_first({"x": torch.arange(3)}), "beside": python_objects()}
    save(value, tmp_path / "a.pth", is_zip, pickle_protocol=protocol)
    contents = read_torch(str(tmp_path / "a.pth"))
    np.testing.assert_array_equal(contents.tensors["x"], np.arange(3))
    assert {"argparse.Namespace", f"{__name__}.Color", f"{__name__}.Meter", "builtins.complex"} <= set(contents.unread)
    assert not [name for name in contents.unread if name.startswith("torch.") and name != "torch._C.Generator"]


def hostile(canary):
    make = (os.mkdir, canary)
    return {
        "reduce": Reduces(*make),
        "eval": Reduces(eval, f"__import__('os').mkdir({canary!r})"),
        "getattr": Reduces(getattr, Reduces(__import__, "os"), "mkdir"),
        "map": Reduces(list, Reduces(map, os.mkdir, [canary])),
        "a rebuilder's argument": Reduces(torch._utils._rebuild_parameter, Reduces(*make), True, None),
        "as a rebuilder": Reduces(torch._tensor._rebuild_from_type_v2, os.mkdir, torch.Tensor, (canary,), {}),
        "ordered dict": Reduces(collections.OrderedDict, [[Reduces(*make), 1]]),
        "default factory": Reduces(collections.defaultdict, os.getpid),
    }


@FORMATS
@pytest.mark.parametrize("kind", hostile(""))
def test_hostile_objects_stay_data(tmp_path, is_zip, kind):
    canary = tmp_path / "was_run"
    value = {"model": name_first({"x": torch.arange(3)}), "beside": [hostile(str(canary))[kind]]}
    save(value, tmp_path / "a.pth", is_zip)
    contents = read_torch(str(tmp_path / "a.pth"))
    np.testing.assert_array_equal(contents.tensors["x"], np.arange(3))
    assert not canary.exists()
    assert {"posix.mkdir", "builtins.eval", "posix.getpid", "builtins.getattr"} & set(contents.unread)


def load(data, functions=FUNCTIONS):
    names = {}
    return unpickle(BytesIO(data), functions, lambda saved_id: saved_id, names), list(names)


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


CALLS = {
    b"cos\nsystem\n(X\x01\x00\x00\x00xtR.": "os.system",
    b"(X\x01\x00\x00\x00xios\nsystem\n.": "os.system",
    b"(cos\nsystem\nX\x01\x00\x00\x00xo.": "os.system",
    b"cos\nsystem\n(X\x01\x00\x00\x00xt\x81.": "os.system",
    b"cos\nsystem\n(X\x01\x00\x00\x00xt}\x92.": "os.system",
    b"ccopy_reg\n_reconstructor\n(cos\nsystem\nc__builtin__\nobject\nNtR.": "os.system",
    text(b"antigravity.os") + text(b"path.sys.exit") + b"\x93)R.": "antigravity.os.path.sys.exit",
    b"\x82\x05)R.": "copyreg.extension 5",
    b"\x84\xff\xff\xff\x7f)R.": "copyreg.extension 2147483647",
    b"cos\nsystem\n)R}X\x0c\x00\x00\x00__setstate__X\x01\x00\x00\x00xsb.": "os.system",
    b"cos\nsystem\n)RX\x01\x00\x00\x00xa.": "os.system",
    b"cos\nsystem\n)RX\x01\x00\x00\x00xX\x01\x00\x00\x00xs.": "os.system",
}


@pytest.mark.parametrize("data", CALLS, ids=repr)
def test_every_instruction_that_calls_makes_a_placeholder(data):
    before = set(sys.modules)
    value, names = load(data)
    assert isinstance(value, Placeholder)
    assert value.name == CALLS[data]
    assert CALLS[data] in names
    assert set(sys.modules) == before  # nothing was imported


DEEP = 30_000


@pytest.mark.parametrize(
    "data",
    [
        b"]" * DEEP + b"a" * (DEEP - 1) + b".",
        b"(" * DEEP + b"t" * DEEP + b".",
        b")" + b"\x85" * DEEP + b".",
        b")" + b"0)q\x00h\x00h\x00\x86" + b"q\x00h\x00h\x00\x86" * 60 + b".",
        b"}q\x00h\x00h\x00\x85Ns.",
        b"]q\x00h\x00a.",
        b"}(" + b")" + b"\x85" * DEEP + b"Nu.",
        b"cx\ny\n" + b")R\x85" * 3 + b"R.",
        b"]r\xff\xff\xff\xff.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff].",
    ],
    ids=["lists", "marks", "tuples", "laughs", "self key", "self item", "deep key", "calls", "memo", "frame"],
)
def test_nested_and_endless_values_are_bounded(data):
    try:
        value, _ = load(data)
    except UnpickleError:
        return
    assert len(list(_candidates(value))) < 10


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fx.",
        b"\x96\xff\xff\xff\xff\xff\xff\xff\xffx.",
        b"B\xff\xff\xff\xffx.",
        b"h\x05.",
        b"t.",
        b"\x97.",
        b"N)R.",
        b"NNs.",
        b"K\x01K\x01\x93.",
        b"I" + b"9" * 5000 + b"\n.",
        b"c" + b"x" * 300 + b"\ny\n.",
        b"ccollections\nOrderedDict\nK\x01\x85R.",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
    ],
    ids=repr,
)
def test_damaged_pickles_are_errors(data):
    with pytest.raises(UnpickleError):
        load(data)


@pytest.fixture
def storage_file(tmp_path):
    (tmp_path / "storage").write_bytes(np.arange(12, dtype=np.float32).tobytes())
    return TorchFile(str(tmp_path / "storage"), None, (), {"0": Span(0, 48)}, False)


def tensor(start=0, shape=(12,), strides=(1,), marks=None, kind="torch.FloatStorage", size=12, key="0", view=0):
    return Tensor(Storage(key, kind, view, size), kind, start, shape, strides, marks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": 1}, "elements beyond"),
        ({"start": -1}, "no sizes"),
        ({"shape": (13,)}, "more elements than"),
        ({"shape": (-1,)}, "no sizes"),
        ({"shape": (2**62, 2**62), "strides": (0, 0)}, "more elements than"),
        ({"shape": (13,), "strides": (0,)}, "more elements than"),
        ({"shape": (2, 2), "strides": (11, 1)}, "elements beyond"),
        ({"shape": (2,), "strides": (2**62,)}, "elements beyond"),
        ({"shape": (2,), "strides": (1, 1)}, "no sizes"),
        ({"shape": (True,)}, "no sizes"),
        ({"shape": None}, "no sizes"),
        ({"shape": (1,) * 100, "strides": (1,) * 100}, "100 dimensions"),
        ({"shape": (0, 2**62), "strides": (1, 1)}, "2 dimensions"),
        ({"size": 13}, "cut off"),
        ({"size": -1}, "more elements than"),
        ({"view": -1}, "cut off"),
        ({"view": 1}, "cut off"),
        ({"key": "1"}, "no storage"),
        ({"kind": "torch.QInt8Storage"}, "is of torch.QInt8Storage"),
        ({"marks": {"conj": True}}, "lazy view"),
    ],
    ids=str,
)
def test_tensors_beyond_their_storage_are_refused(storage_file, changes, message):
    assert to_numpy(storage_file, tensor(), {}).tolist() == list(range(12))
    with pytest.raises(NoPlainTensorError, match=message):
        to_numpy(storage_file, tensor(**changes), {})


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of quantized tensors
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8),
    ],
    ids=["sparse", "quantized"],
)
def test_tensors_that_are_no_arrays_are_named(tmp_path, make):
    save({"model": name_first({"a": make()})}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a is no plain tensor: it is of torch"):
        read_torch(str(tmp_path / "a.pth"))


def write_zip(path, names, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in names:
            archive.writestr(name, pickle.dumps({}, 2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit
def test_other_archives_are_named(tmp_path):
    path = tmp_path / "a.pth"

    def refused(message):
        with pytest.raises(InputError, match=message):
            read_torch(str(path))

    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    refused("TorchScript archive")
    write_zip(path, ["a/data.pkl", "b/data.pkl"])
    refused("2 data.pkl: must be 1")
    write_zip(path, ["a/data.pkl"], zipfile.ZIP_DEFLATED)
    refused("compressed or encrypted")
    with pytest.warns(UserWarning, match="Duplicate"):
        write_zip(path, ["a/data.pkl", "a/data.pkl"])
    refused("'a/data.pkl' twice")
    write_zip(path, ["a/data.pkl", "a/data/0", "a/data/1"])
    data = bytearray(path.read_bytes())
    last = data.rindex(b"PK\x01\x02")
    data[last + 42 : last + 46] = bytes(4)  # the last member is said to be where the first one is
    path.write_bytes(data)
    refused("overlap")
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    refused(r"tar archive: torch.save's format before torch 0.1.10")
    path.write_bytes(pickle.dumps({"a": 1}))
    refused("a pickle that torch.save did not write")


def test_8_bit_floats_go_back_to_torch():
    array = np.arange(4).astype(ml_dtypes.float8_e5m2)
    assert to_torch(array).dtype == torch.float8_e5m2
