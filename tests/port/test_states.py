"""Models that users saved in the ways of Flax, Orbax, Optax and safetensors are read bit for bit."""

import tracemalloc

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import optax
import orbax.checkpoint as ocp
import orbax.checkpoint.experimental.v1 as ocp_v1
import pytest
import safetensors.numpy
from flax import nnx, serialization, traverse_util
from flax.training.train_state import TrainState

import port_weights
import twins_jax
from tests.support.models import SVT, classifier, named
from twins_jax.config import VARIANTS
from twins_jax.errors import InputError
from twins_jax.port.convert import Weights, port
from twins_jax.port.read import read_weights
from twins_jax.port.state_names import select


@pytest.fixture(autouse=True, scope="module")
def _smaller_variant():
    """Half the arrays of twins_svt_tiny: Orbax takes its time for each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "smaller", SVT)
        yield


@pytest.fixture(scope="module")
def model():
    """A classifier with random states beside its parameters, as models with nnx.Dropout have."""
    model = classifier(SVT)
    model.dropouts = nnx.List([nnx.Dropout(0.1, rngs=nnx.Rngs(1))])
    model.rngs = nnx.Rngs(0, noise=1)
    return model


def pure(model):
    """Has integer keys for lists."""
    return nnx.to_pure_dict(nnx.state(model))


def params(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def flat(tree, sep, ending=""):
    return {f"{path}{ending}": leaf for path, leaf in traverse_util.flatten_dict(to_str(tree), sep=sep).items()}


def to_str(tree):
    return {str(key): to_str(value) for key, value in tree.items()} if isinstance(tree, dict) else np.asarray(tree)


def standard(tree):
    def write(path):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, tree)

    return write


def pytree(tree, **options):
    def write(path):
        with ocp.PyTreeCheckpointer(**options) as checkpointer:
            checkpointer.save(path, tree)

    return write


def manager(*steps, prefix=None, **items):
    def write(path):
        with ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(step_prefix=prefix)) as checkpoints:
            for step in steps:
                saves = {name: ocp.args.StandardSave(tree(step)) for name, tree in items.items()}
                args = saves["default"] if list(saves) == ["default"] else ocp.args.Composite(**saves)
                checkpoints.save(step, args=args)

    return write


def shifted(tree, step):
    """Values that tell steps apart; those of step 20 are the model's."""
    return jax.tree.map(lambda leaf: leaf + np.float32(step - 20), to_str(tree))


def train_state(tree):
    params = to_str(tree)
    trace = optax.TraceState(params), optax.EmptyState()  # of optax.sgd with momentum
    return TrainState(step=3, apply_fn=None, params=params, tx=optax.identity(), opt_state=trace)


def with_optimizer(model):
    return nnx.state((model, nnx.Optimizer(model, optax.identity(), wrt=nnx.Param)))


def file(data):
    return lambda path: path.write_bytes(data)


def safe(tensors):
    return lambda path: safetensors.numpy.save_file(tensors, path)


def keystr(tree):
    return {
        jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


SAVE_V1 = getattr(ocp_v1, "save", None) or ocp_v1.save_pytree  # its former name

SAVES = {
    "standard, nnx.state": (lambda model: standard(nnx.state(model)), ""),
    "standard, parameters": (lambda model: standard(nnx.state(model, nnx.Param)), ""),
    "standard, pure dict": (lambda model: standard(pure(model)), ""),
    "pytree, nnx.state": (lambda model: pytree(nnx.state(model)), ""),
    "pytree, without OCDBT": (lambda model: pytree(nnx.state(model), use_ocdbt=False), ""),
    "pytree, more": (
        lambda model: pytree({"model": nnx.state(model), "key": jax.random.key(0), "name": "x", "history": [1.5, {}]}),
        ", under 'model', beside history, key, name",
    ),
    "v1": (lambda model: lambda path: SAVE_V1(path, nnx.state(model)), ""),
    "v1, checkpointables": (
        lambda model: lambda path: ocp_v1.save_checkpointables(path, {"net": nnx.state(model), "x": {"a": np.ones(2)}}),
        "",
    ),
    "manager": (lambda model: manager(3, 20, default=lambda step: shifted(params(model), step)), ""),
    "manager, prefix": (
        lambda model: manager(3, 20, prefix="step", default=lambda step: shifted(params(model), step)),
        "",
    ),
    "manager, items": (
        lambda model: manager(3, 20, net=lambda step: shifted(params(model), step), x=lambda _: {"a": jnp.ones(2)}),
        "",
    ),
    "model and nnx.Optimizer": (lambda model: standard(with_optimizer(model)), ", under '0', beside 1"),
    "TrainState": (
        lambda model: standard(train_state(params(model))),
        ", under 'params', beside opt_state, step",
    ),
    "safetensors, dots": (lambda model: safe(flat(params(model), ".")), ""),
    "safetensors, slashes": (lambda model: safe(flat(params(model), "/")), ""),
    "safetensors, value": (lambda model: safe(flat(params(model), ".", ".value")), ""),
    "safetensors, raw_value": (lambda model: safe(flat(params(model), "/", "/raw_value")), ""),
    "safetensors, keystr": (lambda model: safe(keystr(nnx.state(model, nnx.Param))), ""),
    "msgpack, parameters": (lambda model: file(serialization.to_bytes(params(model))), ""),
    "msgpack, TrainState": (
        lambda model: file(serialization.to_bytes(train_state(params(model)))),
        ", under 'params', beside opt_state, step",
    ),
}


@pytest.mark.parametrize("name", SAVES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_saved_state_is_read_bit_for_bit(model, tmp_path, name):
    write, note = SAVES[name]
    write(model)(tmp_path / "saved")
    weights = read_weights(tmp_path / "saved")
    expected, found = named(to_str(params(model))), port(weights).params
    assert expected.keys() == found.keys()
    for path, array in expected.items():
        assert array.dtype == found[path].dtype
        assert array.tobytes() == found[path].tobytes(), path
    assert weights.container.partition(",")[2] == note.removeprefix(",")


def test_every_reader_of_weights_takes_a_saved_state(model, tmp_path, capsys):
    standard(nnx.state(model))(tmp_path / "saved")
    loaded = twins_jax.get_params(twins_jax.from_pretrained(tmp_path / "saved"))
    assert jax.tree.all(jax.tree.map(np.array_equal, to_str(params(model)), loaded))
    assert port_weights.main([str(tmp_path / "saved"), str(tmp_path / "there.safetensors")]) == 0
    assert "Orbax folder of twins_jax names: smaller" in capsys.readouterr().out


def test_a_moving_average_is_taken_with_ema_alone(model, tmp_path):
    tree = to_str(params(model))
    pytree({"params": tree, "ema_params": jax.tree.map(lambda leaf: -leaf, tree)})(tmp_path / "saved")
    for ema, sign in ((False, 1), (True, -1)):
        found = read_weights(tmp_path / "saved", ema=ema).tensors["head/bias"]
        np.testing.assert_array_equal(found, sign * tree["head"]["bias"])


KERNEL = "backbone/stages/0/peg/kernel"


@pytest.mark.parametrize(
    ("names", "ema", "message"),
    [
        (
            [f"student/{KERNEL}", f"teacher/{KERNEL}"],
            False,
            "FILE: holds several models, under 'student', 'teacher': choose one with prefix= (--prefix)",
        ),
        ([f"params/{KERNEL}"], True, "FILE: holds one set of weights, and no moving average beside it"),
        ([f"{KERNEL}/value", KERNEL.replace("/", ".")], False, f"FILE: holds two arrays for {KERNEL}"),
    ],
)
def test_names_that_leave_a_choice_are_refused(names, ema, message):
    with pytest.raises(InputError) as error:
        select(names, "FILE", ema=ema)
    assert str(error.value) == message


@pytest.mark.parametrize("write", [standard, lambda tree: file(serialization.to_bytes(tree))])
def test_a_prefix_chooses_among_the_models_of_a_tree(model, tmp_path, write):
    tree = to_str(params(model))
    write({"student": tree, "teacher": shifted(tree, 21)})(tmp_path / "saved")
    found = port(read_weights(tmp_path / "saved", prefix="teacher")).params
    np.testing.assert_array_equal(found["norm/bias"], tree["norm"]["bias"] + 1)
    with pytest.raises(
        InputError, match=r"prefix='x': .* has no such model in it: must be one of 'student', 'teacher'"
    ):
        read_weights(tmp_path / "saved", prefix="x")


def test_a_backbone_in_a_user_s_own_model_names_the_rest(model):
    ours = {f"backbone/{path}": array for path, array in named(to_str(params(model))["backbone"]).items()}
    ported = port(Weights("file", "", ours | {"decoder/conv/kernel": np.ones(3)}))
    assert ported.params.keys() == ours.keys()
    assert ported.not_ported == ("decoder/conv/kernel",)
    with pytest.raises(InputError, match="backbone/gamma"):
        port(Weights("file", "", ours | {"backbone/gamma": np.ones(3)}))


def test_names_of_other_layouts_stay():
    names = ["blocks.0.0.attn.qkv.weight", "backbone.stages.0.blocks.0.norm1.weight", "opt_state/0/mu/" + KERNEL]
    assert select(names, "FILE").paths == {name: name for name in names}


@pytest.mark.parametrize("write", [standard, lambda tree: file(serialization.to_bytes(to_str(tree)))])
def test_misfits_of_a_saved_state_are_listed(model, tmp_path, write):
    tree = to_str(params(model))
    del tree["norm"]["bias"]
    tree["head"]["extra"] = np.ones(2, np.float32)
    block = tree["backbone"]["stages"]["0"]["blocks"]["0"]
    block["norm1"] = {"scale": np.ones(5, np.float32), "bias": np.ones(16, np.int32)}
    block["norm2"]["bias"] = np.full(16, np.nan, np.float32)
    write(tree)(tmp_path / "saved")
    with pytest.raises(InputError) as error:
        twins_jax.from_pretrained(tmp_path / "saved")
    first, *lines = str(error.value).splitlines()
    assert first == f"{tmp_path / 'saved'}: 5 tensors do not fit smaller"
    assert sorted(lines) == [
        "  ! backbone/stages/0/blocks/0/norm1/bias has dtype int32, expected floating-point",
        "  ! backbone/stages/0/blocks/0/norm1/scale has shape (5,), expected (16,)",
        "  ! backbone/stages/0/blocks/0/norm2/bias holds NaN or infinity",
        "  + head/extra (2,) is left over",
        "  - norm/bias (64,) is missing",
    ]


def test_msgpack_arrays_in_chunks(model, tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 1000)  # 1 GiB, that of Flax, takes too long
    tree = to_str(params(model))
    expected = tree["backbone"]["stages"]["3"]["peg"]["kernel"].copy()
    assert expected.nbytes > 2000
    (tmp_path / "saved").write_bytes(serialization.to_bytes(tree))
    assert b"__msgpack_chunked_array__" in (tmp_path / "saved").read_bytes()
    found = port(read_weights(tmp_path / "saved")).params["backbone/stages/3/peg/kernel"]
    np.testing.assert_array_equal(found, expected)


def nested(header, depth=500, size=20_000_000):
    """Headers within each other, each of which claims as many entries as the file has bytes."""
    return (header + (size - 1).to_bytes(4, "big")) * depth + b"\xc0" * size


def array(*parts):
    return {"backbone": {"stages": {"0": {"kernel": msgpack.ExtType(1, b"".join(parts))}}}}


MALFORMED = {
    "cut": serialization.to_bytes({"a": np.ones(100)})[:-1],
    "more": serialization.to_bytes({"a": np.ones(100)}) + b"\0",
    "number as a key": b"\x82\xa1a\x01\x01\x01",
    "twice": b"\x82\xa1a\x01\xa1a\x01",
    "array for weights": msgpack.packb({"stages": {"0": {"kernel": [1, 2]}}}),
    "code": msgpack.packb({"stages": {"0": {"kernel": msgpack.ExtType(5, b"code")}}}),
    "deep": b"\x81\xa1a" * 100_000 + b"\x01",
    "long names": b"\x81\xdb" + (10**6).to_bytes(4, "big") + b"a" * 10**6 + b"\x81\xa1a" * 500 + b"\x01",
    "entries": msgpack.packb({str(number): 0 for number in range(300_000)}),
    "arrays": b"\x81\xa1a" + nested(b"\xdd"),
    "maps": b"\x81\xa1a" + nested(b"\xdf"),
    "axes": msgpack.packb(array(b"\x93\xdd\xff\xff\xff\xff", b"\x01" * 100)),
    "arrays as a shape": msgpack.packb(array(b"\x93\x91", nested(b"\xdd", depth=100, size=10**6))),
    "empty arrays as a shape": msgpack.packb(
        array(b"\x93\xdd" + (10**6).to_bytes(4, "big") + b"\x90" * 10**6 + b"\xa7float32\xc4\x04\0\0\0\0")
    ),
    "arrays as values": msgpack.packb(array(b"\x93\x91\x01\xc4\x07float32", nested(b"\xdd", depth=100, size=10**6))),
    "objects": msgpack.packb(array(msgpack.packb(([1], "object", b"\0" * 8)))),
    "other size": msgpack.packb(array(msgpack.packb(([2**40], "float32", b"\0" * 8)))),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_msgpack_is_refused_within_bounds(tmp_path, name):
    path = tmp_path / "saved"
    path.write_bytes(MALFORMED[name])
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as error:
            read_weights(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    assert peak < 3 * len(MALFORMED[name]) + 2**22


def test_msgpack_of_another_model(tmp_path):
    path = tmp_path / "saved"
    path.write_bytes(
        serialization.to_bytes({"step": 3, "params": {"Conv_0": {"kernel": np.ones(2), "bias": np.ones(2)}}})
    )
    with pytest.raises(InputError) as error:
        port(read_weights(path))
    names = "params/Conv_0/kernel, params/Conv_0/bias"
    assert str(error.value) == f"{path}: holds no Twins parameters, but 2 tensors such as {names}"


def test_mutated_msgpack(tmp_path):
    stages = {"0": {"peg": {"kernel": np.ones((3, 3, 1, 4), np.float32), "bias": np.ones(4, np.float32)}}}
    data, path = serialization.to_bytes({"params": {"backbone": {"stages": stages}}, "step": 3}), tmp_path / "saved"
    for seed in range(300):
        rng = np.random.default_rng(seed)
        damaged = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            start, length = rng.integers(len(data)), rng.choice([1, 2, 4, 8])
            damaged[start : start + length] = rng.bytes(rng.choice([0, length]))
        path.write_bytes(damaged[: rng.integers(1, 2 * len(data))])
        with pytest.raises(InputError, match=f"^{path}: "):
            port(read_weights(path))
