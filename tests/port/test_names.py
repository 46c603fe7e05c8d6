"""Names as files have them: prefixes, containers, bookkeeping, heads under other names."""

import numpy as np
import pytest
import safetensors.torch
import torch

import port_weights
import twins_jax
from twins_jax.errors import InputError
from twins_jax.port.convert import Weights, port
from twins_jax.port.names import tidy_names
from twins_jax.port.read import read_weights


@pytest.fixture(scope="module")
def arrays(tiny) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tiny.items()}


def under(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


PREFIXES = ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "encoder.", "net.student."]


@pytest.mark.parametrize("beside", [{}, {"metric.total": np.ones(3)}], ids=["alone", "metric"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix_is_stripped_and_the_rest_named(arrays, prefix, beside):
    if beside and not prefix:
        return  # then it is an unknown tensor of the model
    names = tidy_names(under(prefix, arrays) | beside, "file")
    assert (names.prefix, names.left_out) == (prefix, tuple(beside))
    assert names.tensors.keys() == arrays.keys()


WRAPPED = {
    "a compiled block": lambda name: name.replace("blocks.0.0.", "blocks.0.0._orig_mod."),
    "all compiled": lambda name: name.replace(".", "._orig_mod.", 1),
    "FSDP within FSDP": lambda name: (
        f"_fsdp_wrapped_module.{name.replace('blocks.0.0.', 'blocks.0.0._fsdp_wrapped_module.')}"
    ),
    "checkpointing in FSDP": lambda name: name.replace(
        "blocks.0.0.", "blocks.0.0._fsdp_wrapped_module._checkpoint_wrapped_module."
    ),
    "DDP of the head": lambda name: name.replace("head.", "head.module."),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_are_taken_out_wherever_they_stand_and_named(arrays, kind):
    names = tidy_names({WRAPPED[kind](name): array for name, array in arrays.items()}, "file")
    assert names.tensors.keys() == arrays.keys()
    assert names.wrappers
    notes = dict(Weights("file", "", names.tensors, wrappers=names.wrappers).notes)
    assert notes == {"wrappers taken out of names": ", ".join(names.wrappers)}
    twice = {"blocks.0.0.norm1.weight": np.ones(3), "blocks.0.0.module.norm1.weight": np.ones(3)}
    assert tidy_names(twice, "file").tensors == twice  # for the error of a name left over


def test_a_wrapped_backbone_still_marks_a_dense_checkpoint(arrays):
    names = tidy_names(under("backbone._orig_mod.", arrays) | {"decode_head.weight": np.ones(3)}, "file")
    assert {"backbone.norm.weight", "decode_head.weight"} <= names.tensors.keys()


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_backbone_marks_a_dense_checkpoint_under_any_prefix(arrays, prefix):
    state = under(prefix, under("backbone.", arrays) | {"decode_head.weight": np.ones(3)}) | {
        "metric.total": np.ones(3)
    }
    names = tidy_names(state, "file")
    assert names.prefix == prefix
    assert names.left_out == (("metric.total",) if prefix else ())
    assert {"backbone.norm.weight", "decode_head.weight"} <= names.tensors.keys()


def test_two_models_are_an_error_that_names_both_and_the_choice(arrays):
    state = under("student.", arrays) | under("teacher.backbone.", arrays)
    with pytest.raises(InputError, match=r"holds 2 models, under 'student\.', 'teacher\.backbone\.': choose one with"):
        tidy_names(state, "file")
    assert tidy_names(arrays | state, "file", prefix="").prefix == ""
    names = tidy_names(state, "file", prefix="student")
    assert (names.prefix, len(names.left_out)) == ("student.", len(arrays))
    with pytest.raises(
        InputError, match=r"prefix='x\.': file has no Twins parameters under it: must be one of 'student"
    ):
        tidy_names(state, "file", prefix="x")


def test_a_prefix_is_named_when_porting(tiny, tmp_path, capsys):
    state = under("model._orig_mod.", tiny) | {"criterion.weight": torch.ones(10)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "a.ckpt")
    for command in (["--inspect", tmp_path / "a.ckpt"], [tmp_path / "a.ckpt", tmp_path / "orbax"]):
        assert port_weights.main([str(part) for part in command]) == 0
        lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        assert "prefix: model._orig_mod." in lines
        assert "not ported: 1 tensors: criterion.weight" in lines


OTHER = {"conv.weight": torch.ones(3)}


@pytest.mark.parametrize(
    ("wrap", "ema", "container"),
    [
        (lambda model: {"net": model, "best_acc": 0.5}, False, "net"),
        (
            lambda model: {"unheard_of": model, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
            False,
            "unheard_of",
        ),
        (lambda model: {"state": {"model": model}}, False, "state.model"),
        (lambda model: {"a": {"b": model}}, False, "a.b"),
        (lambda model: {"model": OTHER, "network": model}, False, "network"),
        (lambda model: {"ema": OTHER | model, "model": model}, False, "model"),
        (lambda model: {"ema": {"module": model}, "model": {**OTHER, **model}}, True, "ema.module"),
        (lambda model: {"ema": model}, False, "ema"),
        (lambda model: {**model, "epoch": 3, "optimizer": {"lr": 0.1}}, False, ""),
    ],
)
def test_containers_are_found_by_their_contents(tiny, tmp_path, wrap, ema, container):
    torch.save(wrap(tiny), tmp_path / "a.pth")
    weights = read_weights(tmp_path / "a.pth", ema=ema)
    assert weights.container == (f"torch file, under {container!r}" if container else "torch file")
    assert weights.tensors.keys() == tiny.keys()
    assert weights.ignored == (("epoch", "optimizer") if not container else ())


@pytest.mark.parametrize("other", ["ema_model.", "model_ema.module.", "ema."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_average_may_be_a_prefix_in_one_state_dict(tiny, tmp_path, other, suffix):
    state = under("model.", tiny) | under(other, {name: tensor + 1 for name, tensor in tiny.items()})
    path = tmp_path / f"a{suffix}"
    torch.save({"state_dict": state}, path) if suffix == ".pth" else safetensors.torch.save_file(state, path)
    for ema, prefix in ((False, "model."), (True, other)):
        weights = read_weights(path, ema=ema)
        assert weights.prefix == prefix
        np.testing.assert_array_equal(weights.tensors["norm.bias"], tiny["norm.bias"].numpy() + ema)


@pytest.mark.parametrize(("model", "average"), [("params", "params_ema"), ("weights", "ema_weights"), ("net", "EMA")])
def test_an_average_may_be_under_any_key_with_ema(tiny, tmp_path, model, average):
    torch.save({average: {name: tensor + 1 for name, tensor in tiny.items()}, model: tiny}, tmp_path / "a.pth")
    for ema in (False, True):
        weights = read_weights(tmp_path / "a.pth", ema=ema)
        np.testing.assert_array_equal(weights.tensors["norm.bias"], tiny["norm.bias"].numpy() + ema)


def test_one_dict_may_be_the_model_and_its_average(tiny, tmp_path):
    torch.save({"model": tiny, "model_ema": tiny}, tmp_path / "a.pth")
    for ema, key in ((False, "model"), (True, "model_ema")):
        assert read_weights(tmp_path / "a.pth", ema=ema).container.endswith(f"{key!r}")


def test_a_classifier_named_backbone_is_one_unless_another_task_stands_beside_it(tiny, tmp_path):
    state = {"student": under("module.backbone.", tiny), "teacher": under("backbone.", tiny)}
    torch.save(state, tmp_path / "a.pth")
    for prefix in ("teacher", "student"):
        assert port(read_weights(tmp_path / "a.pth", prefix=prefix)).model.num_classes == 10
    torch.save({"teacher": under("backbone.", tiny) | {"decode_head.weight": torch.ones(3)}}, tmp_path / "b.pth")
    assert port(read_weights(tmp_path / "b.pth")).model.num_classes is None


def test_two_unknown_containers_are_an_error_that_a_prefix_decides(tiny, tmp_path):
    torch.save({"student": tiny, "teacher": {name: tensor + 1 for name, tensor in tiny.items()}}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="holds 2 models, under 'student', 'teacher': choose one with prefix="):
        read_weights(tmp_path / "a.pth")
    weights = read_weights(tmp_path / "a.pth", prefix="teacher")
    np.testing.assert_array_equal(weights.tensors["norm.bias"], tiny["norm.bias"].numpy() + 1)
    with pytest.raises(InputError, match=r"has no model_ema or .* with a model in it, only student, teacher"):
        read_weights(tmp_path / "a.pth", ema=True)


@pytest.mark.parametrize("name", ["total_ops", "blocks.0.0.total_params", "n_averaged", "head.num_batches_tracked"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_bookkeeping_is_ignored_and_listed(arrays, name, prefix):
    names = tidy_names(under(prefix, arrays | {name: np.zeros(1)}), "file")
    assert (names.ignored, names.left_out) == ((prefix + name,), ())
    assert names.tensors.keys() == arrays.keys()


def test_unknown_tensors_stay_errors(tiny, tmp_path):
    torch.save(tiny | {"blocks.0.0.gamma": torch.ones(3), "x\x1b[2J\n": torch.ones(3)}, tmp_path / "a.pth")
    with pytest.raises(
        InputError, match=r"\+ blocks.0.0.gamma \(3,\) is left over\n  \+ 'x\\x1b\[2J\\n' \(3,\) is left"
    ):
        port(read_weights(tmp_path / "a.pth"))


def renamed(tiny, name, classes=10):
    state = {key: tensor for key, tensor in tiny.items() if not key.startswith("head.")}
    return state | {f"{name}.weight": torch.ones(classes, 256), f"{name}.bias": torch.arange(float(classes))}


@pytest.mark.parametrize("name", ["fc", "classifier", "head.fc", "head.0", "head.classifier.1"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_head_of_another_name_is_recognized_taken_and_dropped(tiny, tmp_path, name, prefix):
    torch.save(under(prefix, renamed(tiny, name, 7)), tmp_path / "a.pth")
    source = tmp_path / "a.pth"
    full = prefix + name
    said = rf"; {full} has the shape of a classifier's head: head='{full}' \(--head {full}\) takes it, head='none'"
    with pytest.raises(InputError, match=said):
        twins_jax.from_pretrained(source)
    for head in (name, full):
        ported = port(read_weights(source, head=head))
        assert ported.model.num_classes == 7
        np.testing.assert_array_equal(ported.params["head/bias"], np.arange(7.0))
    ported = port(read_weights(source, head="none"))
    assert (ported.model.num_classes, len(ported.not_ported)) == (0, 2)
    with pytest.raises(InputError, match=r"head='x': .* must be one of .*; or 'none'"):
        read_weights(source, head="x")


def test_a_head_outside_the_prefix_is_named_unless_the_call_decides(tiny, tmp_path, capsys):
    state = renamed(tiny, "classifier", 7)
    state = {name if name.startswith("classifier") else f"encoder.{name}": tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"without a module named head; classifier has .*: head='classifier' \(--head"):
        twins_jax.from_pretrained(tmp_path / "a.pth")
    assert port_weights.main([str(tmp_path / "a.pth"), str(tmp_path / "orbax")]) == 2
    assert "head='classifier'" in capsys.readouterr().err
    assert port(read_weights(tmp_path / "a.pth", head="classifier")).model.num_classes == 7
    assert twins_jax.from_pretrained(tmp_path / "a.pth", num_classes=0).num_classes == 0


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("root", ["head", "fc"])
def test_all_layers_of_a_head_are_dropped_and_none_is_offered_alone(arrays, root, prefix):
    state = {name: array for name, array in arrays.items() if not name.startswith("head.")}
    layers = {"0": np.ones((9, 256)), "2": np.ones((4, 9))}
    state |= {f"{root}.{layer}.weight": array for layer, array in layers.items()}
    state |= {f"{root}.{layer}.bias": array[:, 0] for layer, array in layers.items()}
    names = tidy_names(under(prefix, state), "file")
    weights = Weights("file", "", names.tensors, heads=names.heads, whole_heads=names.whole_heads)
    assert weights.hint.endswith("but is one layer of several: head='none' (--head none) drops it")
    names = tidy_names(under(prefix, state), "file", head="none")
    assert len(names.left_out) == 4
    assert port(Weights("file", "", names.tensors)).model.num_classes == 0


def test_a_head_without_the_final_norm_is_not_offered(tiny, tmp_path):
    """As mmpretrain saves a classifier."""
    state = {f"backbone.{name}": value for name, value in tiny.items() if name.split(".")[0] not in ("norm", "head")}
    torch.save(state | {"head.fc.weight": torch.ones(7, 256), "head.fc.bias": torch.ones(7)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="final norm is missing: only backbone_from_pretrained takes it; head='none'"):
        twins_jax.from_pretrained(tmp_path / "a.pth")
    for head in (None, "none"):
        assert port(read_weights(tmp_path / "a.pth", head=head)).model.num_classes is None


def test_the_other_of_two_heads_is_left_out(tiny, tmp_path):
    state = tiny | {"head_dist.weight": torch.zeros(10, 256), "head_dist.bias": torch.zeros(10)}
    torch.save(state, tmp_path / "a.pth")
    for head in ("head", "head_dist"):
        ported = port(read_weights(tmp_path / "a.pth", head=head))
        np.testing.assert_array_equal(ported.params["head/bias"], state[f"{head}.bias"].numpy())
        assert len(ported.not_ported) == 2


def test_a_backbone_in_a_user_s_classifier_with_its_own_head(tiny, tmp_path):
    state = under("backbone.", {name: tensor for name, tensor in tiny.items() if not name.startswith("head.")})
    state |= {"fc.weight": torch.ones(5, 256), "fc.bias": torch.ones(5)}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"use backbone_from_pretrained; fc has the shape .* head='fc' \(--head fc\)"):
        twins_jax.from_pretrained(tmp_path / "a.pth")
    assert twins_jax.from_pretrained(tmp_path / "a.pth", head="fc").num_classes == 5


def test_head_is_no_option_of_files_with_our_names(tiny_orbax):
    with pytest.raises(InputError, match="head='none': must be None for file, which has no names of PyTorch's"):
        tidy_names(read_weights(tiny_orbax).tensors, "file", head="none")


def test_head_is_no_option_of_orbax_folders(tiny_orbax):
    with pytest.raises(InputError, match="head='x': must be None"):
        read_weights(tiny_orbax, head="x")


def test_an_encoder_without_norm_and_head_is_a_backbone(tiny, tmp_path):
    """As segmentation_models_pytorch saves timm's features."""
    state = {name: tensor for name, tensor in tiny.items() if name.split(".")[0] not in ("norm", "head")}
    state = under("encoder.model.", state) | {"decoder.blocks.0.conv1.0.weight": torch.ones(8, 8, 3, 3)}
    torch.save(state, tmp_path / "a.pth")
    ported = port(read_weights(tmp_path / "a.pth"))
    assert ported.model.num_classes is None
    assert ported.not_ported == ("decoder.blocks.0.conv1.0.weight",)
