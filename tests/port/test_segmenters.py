"""Segmenters' files: names of mmsegmentation, bits there and back, running statistics, what is declared, errors."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.torch
import torch
from flax import nnx, serialization

import port_weights
import twins_jax
from tests.support.porting import assert_same, run
from tests.support.segmenter_files import LEFTOVERS, NAMES, assert_equal_models, save_as_mmcv, variables
from twins_jax.errors import InputError
from twins_jax.port.convert import port
from twins_jax.port.names import without_wrappers
from twins_jax.port.read import read_weights
from twins_jax.port.verify import Input, verify
from twins_jax.segmentation.segmenter import HEADS


@pytest.fixture(autouse=True, scope="module")
def _small(small_segmenters):
    """Of every test here."""


@pytest.mark.parametrize("head", HEADS)
def test_bits_there_and_back(head, make_state, request, tmp_path, capsys):
    source = request.getfixturevalue("fpn" if head == "semantic_fpn" else head)
    orbax, ours = tmp_path / "orbax", tmp_path / "ours.safetensors"
    run(source, orbax)
    output = capsys.readouterr().out
    assert f"not ported: 4 tensors: {', '.join(LEFTOVERS)}\n" in output
    assert "ignored: num_batches_tracked (" in output
    run(orbax, tmp_path / "back.pth")
    assert_same(torch.load(tmp_path / "back.pth", weights_only=True), make_state(head))
    run(source, ours)
    run(ours, tmp_path / "back.safetensors")
    assert_same(safetensors.torch.load_file(tmp_path / "back.safetensors"), make_state(head))
    for path in (source, orbax, ours, tmp_path / "back.safetensors"):
        assert read_weights(path).declared.class_names == NAMES
    assert read_weights(tmp_path / "back.pth").declared.class_names is None


def test_pytorch_s_strict_loading_takes_a_file_without_counts_of_batches(fpn, tmp_path):
    run(fpn, tmp_path / "ours.safetensors")
    run(tmp_path / "ours.safetensors", tmp_path / "back.pth")
    state = torch.load(tmp_path / "back.pth", weights_only=True)
    root = "decode_head.scale_heads.3.4."
    module = torch.nn.ModuleDict({"conv": torch.nn.Conv2d(128, 128, 3, bias=False), "bn": torch.nn.BatchNorm2d(128)})
    module.load_state_dict({name.removeprefix(root): state[name] for name in state if name.startswith(root)})
    assert torch.equal(module["bn"].running_var, state[f"{root}bn.running_var"])


@pytest.mark.parametrize(
    "meta",
    [{"CLASSES": list(NAMES)}, {"dataset_meta": {"classes": NAMES}}, {"dataset_meta": {"CLASSES": NAMES}}],
)
def test_class_names_of_other_versions(make_state, tmp_path, meta):
    path = save_as_mmcv(make_state("semantic_fpn"), tmp_path / "a.pth", meta)
    assert twins_jax.segmenter_from_pretrained(path).class_names == NAMES


@pytest.mark.parametrize("meta", [3, {"CLASSES": NAMES[:4]}, {"CLASSES": "abcde"}, {"CLASSES": [1, 2, 3, 4, 5]}])
def test_records_that_are_no_class_names_are_passed_over(make_state, tmp_path, meta):
    path = save_as_mmcv(make_state("semantic_fpn"), tmp_path / "a.pth", meta)
    assert read_weights(path).declared.class_names is None
    assert port(read_weights(path)).model.num_classes == 5


ONE = (Input(2, 49, 70),)


@pytest.mark.parametrize("head", HEADS)
def test_verify(head, request):
    weights = read_weights(request.getfixturevalue("fpn" if head == "semantic_fpn" else head))
    model = twins_jax.segmenter_from_pretrained(weights.label)
    report = verify(weights, model, inputs=ONE)
    assert report.holds, report.to_text()
    outputs = ["stage 1", "stage 2", "stage 3", "stage 4", "logits", *(["auxiliary"] if head == "upernet" else [])]
    assert [row.output for row in report.comparisons] == outputs
    assert report.top1_agreement == 1
    module = model.auxiliary_head.conv if head == "upernet" else model.decode_head.scale_heads[3].convs[2]
    module.bn.var[...] = module.bn.var[...].at[3].mul(1.01)
    assert verify(weights, model, inputs=ONE).first_difference == outputs[-1]


def test_kinds_are_not_compared(fpn):
    weights = read_weights(fpn)
    message = "holds a Semantic FPN segmenter, which a TwinsBackbone cannot be compared with"
    with pytest.raises(InputError, match=message):
        verify(weights, twins_jax.backbone_from_pretrained(fpn))


def test_inspect(fpn, capsys):
    run("--inspect", fpn)
    text = capsys.readouterr().out
    facts = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines())
    model = twins_jax.segmenter_from_pretrained(fpn)
    for fact, tree in (
        ("parameters", twins_jax.get_params(model)),
        ("statistics", twins_jax.get_batch_stats(model)),
    ):
        assert facts[fact].strip() == f"{sum(array.size for array in jax.tree.leaves(tree)):,}"
    assert facts["head"].strip() == "a Semantic FPN segmenter"
    assert facts["classes"].strip() == r"5: 'wall', 'b\x1b[31m', 'Käse', ..."
    rows = {line.split()[0]: line.split()[1] for line in text.splitlines() if line.startswith("decode_head/")}
    assert rows.keys() == {"decode_head/neck", "decode_head/scale_heads", "decode_head/classifier"}
    assert rows["decode_head/classifier"] == f"{128 * 5 + 5}"


def test_misfits_are_listed_in_the_file_s_names(make_state, tmp_path, capsys):
    state = make_state("semantic_fpn")
    del state["decode_head.scale_heads.2.2.bn.running_mean"]
    state["neck.fpn_convs.1.conv.weight"] = torch.ones(256, 256, 1, 1)
    state["decode_head.scale_heads.3.1.conv.weight"] = torch.ones(2)
    state["auxiliary_head.convs.0.conv.weight"] = torch.ones(256, 48, 3, 3)
    state["decode_head.scale_heads.0.0.bn.running_var"][3] = torch.nan
    path = tmp_path / "a.pth"
    torch.save(state, path)
    assert port_weights.main([str(path), str(tmp_path / "orbax")]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[0] == f"error: {path}: 5 tensors do not fit mini"
    assert sorted(error[1:]) == [
        "  ! decode_head.scale_heads.0.0.bn.running_var holds NaN or infinity",
        "  ! neck.fpn_convs.1.conv.weight has shape (256, 256, 1, 1), expected (256, 256, 3, 3)",
        "  + auxiliary_head.convs.0.conv.weight (256, 48, 3, 3) is left over",
        "  + decode_head.scale_heads.3.1.conv.weight (2,) is left over",
        "  - decode_head.scale_heads.2.2.bn.running_mean (128,) is missing",
    ]


def test_upernet_without_its_auxiliary_head_is_refused(make_state, tmp_path):
    state = {name: tensor for name, tensor in make_state("upernet").items() if not name.startswith("auxiliary_head")}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(InputError) as caught:
        twins_jax.segmenter_from_pretrained(tmp_path / "a.safetensors")
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("7 tensors do not fit mini")
    assert all(line.startswith("  - auxiliary_head.") for line in lines[1:])


@pytest.mark.parametrize("missing", ["bias", "weight"])
def test_classes_are_read_where_one_tensor_of_the_classifier_is_missing(make_state, tmp_path, missing):
    state = make_state("semantic_fpn")
    shape = tuple(state.pop(f"decode_head.conv_seg.{missing}").shape)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(InputError, match=re.escape(f"  - decode_head.conv_seg.{missing} {shape} is missing")):
        port(read_weights(tmp_path / "a.pth"))


def test_wrappers_within_heads_are_taken_out():
    for root in ("decode_head", "neck", "auxiliary_head"):
        assert without_wrappers(f"module.{root}._orig_mod.x.module.bn.bias") == f"module.{root}.x.bn.bias"


def test_a_wrapped_and_prefixed_checkpoint(make_state, fpn, tmp_path):
    state = {
        f"module.{name.replace('scale_heads.', 'scale_heads._orig_mod.')}": tensor
        for name, tensor in make_state("semantic_fpn").items()
    }
    torch.save(state, tmp_path / "a.pth")
    loaded = twins_jax.segmenter_from_pretrained(tmp_path / "a.pth")
    assert_equal_models(loaded, twins_jax.segmenter_from_pretrained(fpn))


@pytest.fixture(scope="module")
def training_run(fpn, tmp_path_factory) -> Path:
    """As training keeps it: items of a step, the average of the parameters, and records of the run."""
    model, folder = twins_jax.segmenter_from_pretrained(fpn), tmp_path_factory.mktemp("run")
    params, stats = twins_jax.get_params(model), twins_jax.get_batch_stats(model)
    items = {"params": params, "ema": jax.tree.map(lambda leaf: -leaf, params), "batch_stats": stats}
    with ocp.CheckpointManager(folder / "checkpoints") as manager:
        manager.save(20, args=ocp.args.Composite(**{name: ocp.args.StandardSave(tree) for name, tree in items.items()}))
    config = {
        "head": "semantic_fpn",
        "model": {"name": "mini", "window_padding": "zero"},
        "data": {"source": "folder", "crop_size": 64, "shorter": 96, "longer": 400},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "dataset.json").write_text(json.dumps({"class_names": NAMES}))
    return folder


@pytest.mark.parametrize(("place", "ema"), [("", False), ("", True), ("checkpoints/20/params", False)])
def test_a_training_run(training_run, fpn, place, ema):
    model = twins_jax.segmenter_from_pretrained(training_run / place, ema=ema)
    expected = variables(twins_jax.segmenter_from_pretrained(fpn))
    for path, array in variables(model).items():
        is_average = ema and not path.endswith(("/mean", "/var"))
        np.testing.assert_array_equal(array, -expected[path] if is_average else expected[path])
    assert (model.class_names, model.config.window_padding) == (NAMES, "zero")
    assert model.preprocessing == twins_jax.SegmentationPreprocessing(96, 400)


def test_records_of_a_run_that_cannot_be(training_run):
    config = json.loads((training_run / "config.json").read_text())
    for change, message in (
        ({"head": "upernet"}, "its config.json says head 'upernet', its weights are of 'semantic_fpn'"),
        ({"data": {"shorter": 96, "longer": 64}}, r"config\.json: data: longer=64: must be an integer from shorter"),
    ):
        (training_run / "config.json").write_text(json.dumps(config | change))
        try:
            with pytest.raises(InputError, match=message):
                twins_jax.segmenter_from_pretrained(training_run)
        finally:
            (training_run / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("collections", [("params", "batch_stats"), ("model/params", "model/batch_stats")])
def test_states_of_flax(fpn, tmp_path, collections):
    model = twins_jax.segmenter_from_pretrained(fpn)
    trees = (twins_jax.get_params(model), twins_jax.get_batch_stats(model))
    state: dict[str, Any] = {"step": np.int32(3)}
    for place, tree in zip(collections, trees, strict=True):
        parent, _, name = place.rpartition("/")
        (state.setdefault(parent, {}) if parent else state)[name] = tree
    (tmp_path / "a.msgpack").write_bytes(serialization.to_bytes(state))
    assert_equal_models(twins_jax.segmenter_from_pretrained(tmp_path / "a.msgpack"), model)


def test_a_state_of_nnx(fpn, tmp_path):
    model = twins_jax.segmenter_from_pretrained(fpn)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", nnx.state(model))
    assert_equal_models(twins_jax.segmenter_from_pretrained(tmp_path / "saved"), model)
