"""Segmenters' weights: names of mmsegmentation, bits there and back, running statistics, what is declared, errors."""

import functools
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.torch
import torch
from flax import nnx, serialization

import port_weights
import twins_jax
from tests.parity import torch_segmentation
from tests.support import models
from tests.support.models import SVT, named
from twins_jax.config import VARIANTS
from twins_jax.errors import InputError
from twins_jax.port import infer
from twins_jax.port.card import model_card
from twins_jax.port.convert import Declared, port, to_layout
from twins_jax.port.infer import of_model
from twins_jax.port.names import without_wrappers
from twins_jax.port.read import read_weights
from twins_jax.port.rules import TORCH_DENSE
from twins_jax.port.verify import Input, verify
from twins_jax.pretrained import model_from_pretrained
from twins_jax.segmentation import segmenter
from twins_jax.segmentation.fcn import FCNHead
from twins_jax.segmentation.segmenter import HEADS, segmenter_config
from twins_jax.segmentation.upernet import UPerHead

State = dict[str, torch.Tensor]
NAMES = ("wall", "b\x1b[31m", "Käse", "", "sky")
IMAGES = twins_jax.SegmentationPreprocessing(96, 400, (0.5, 0.4, 0.3), (0.25, 0.3, 0.1 + 0.2))


CHANNELS = 16
"""Of UPerNet's heads, which have upstream's 512 and 256 in tests/port/test_rules.py: files are of 2 MB, not 110."""


@pytest.fixture(autouse=True, scope="module")
def _small_models():
    infer._expected.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "mini", SVT)
        patch.setitem(HEADS, "upernet", functools.partial(UPerHead, channels=CHANNELS))
        patch.setattr(segmenter, "FCNHead", functools.partial(FCNHead, channels=CHANNELS))
        yield
    infer._expected.cache_clear()


@pytest.fixture(scope="module")
def make_state() -> Callable[[str], State]:
    """A segmenter's state dict whose names of heads come from no table of ours."""
    states: dict[str, State] = {}

    def make(head: str) -> State:
        if head not in states:
            arrays = named(twins_jax.get_params(models.backbone(segmenter_config("mini"))))
            # The names of backbones are compared with timm's in tests/port/test_rules.py.
            backbone = to_layout({f"backbone/{path}": array for path, array in arrays.items()}, TORCH_DENSE)
            channels = {"channels": CHANNELS, "auxiliary_channels": CHANNELS} if head == "upernet" else {}
            states[head] = {
                **{name: torch.from_numpy(np.array(array, order="C")) for name, array in backbone.items()},
                **torch_segmentation.random_weights(head, SVT.embed_dims, len(NAMES), **channels),
            }
        return {name: tensor.clone() for name, tensor in states[head].items()}

    return make


@pytest.fixture(scope="module")
def fpn(make_state, tmp_path_factory) -> Path:
    """A checkpoint of Semantic FPN as mmcv's runner writes it, with all that upstream's have beside the weights."""
    return save_as_mmcv(make_state("semantic_fpn"), tmp_path_factory.mktemp("fpn") / "fpn.pth")


@pytest.fixture(scope="module")
def upernet(make_state, tmp_path_factory) -> Path:
    return save_as_mmcv(make_state("upernet"), tmp_path_factory.mktemp("upernet") / "upernet.pth")


LEFTOVERS = ("backbone.norm.weight", "backbone.norm.bias", "backbone.head.weight", "backbone.head.bias")


def save_as_mmcv(state: State, path: Path, meta: Any = None) -> Path:
    tracked = {name.replace("running_var", "num_batches_tracked"): torch.tensor(5) for name in state if "_var" in name}
    leftovers = {name: torch.ones((1000, 64) if "head.weight" in name else (64,)) for name in LEFTOVERS}
    meta = {"CLASSES": NAMES, "PALETTE": [[1, 2, 3]], "mmseg_version": "0.12"} if meta is None else meta
    torch.save({"meta": meta, "state_dict": state | tracked | leftovers, "optimizer": {"state": {}}}, path)
    return path


def run(*arguments: object) -> None:
    assert port_weights.main([str(argument) for argument in arguments]) == 0


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].numpy().tobytes() == tensor.numpy().tobytes(), name


def variables(model: nnx.Module) -> dict[str, np.ndarray]:
    return named(twins_jax.get_params(model)) | named(twins_jax.get_batch_stats(model))


def assert_equal_models(found: nnx.Module, expected: nnx.Module) -> None:
    found_arrays, arrays = variables(found), variables(expected)
    assert found_arrays.keys() == arrays.keys()
    assert all(found_arrays[path].tobytes() == array.tobytes() for path, array in arrays.items())


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


def test_each_function_names_the_right_one(fpn, tiny_pth, tmp_path, caplog):
    with pytest.raises(InputError, match=r"holds a Semantic FPN segmenter: use segmenter_from_pretrained$"):
        twins_jax.from_pretrained(fpn)
    with pytest.raises(InputError, match=r"holds a classifier without a segmentation head: use from_pretrained$"):
        twins_jax.segmenter_from_pretrained(tiny_pth)
    with caplog.at_level(logging.WARNING):
        backbone = twins_jax.backbone_from_pretrained(fpn)
    assert "tensors not ported: " in caplog.text
    assert backbone.config.stage_norms
    backbone.save_pretrained(tmp_path / "backbone")
    message = r"holds a backbone without a segmentation head: use backbone_from_pretrained$"
    with pytest.raises(InputError, match=message):
        twins_jax.segmenter_from_pretrained(tmp_path / "backbone")
    assert isinstance(model_from_pretrained(fpn), twins_jax.TwinsSegmenter)
    assert isinstance(model_from_pretrained(tmp_path / "backbone"), twins_jax.TwinsBackbone)


def test_the_backbone_is_had_whatever_the_head_looks_like(make_state, tmp_path):
    state = make_state("semantic_fpn")
    state["decode_head.scale_heads.0.0.conv.weight"] = torch.ones(64, 256, 3, 3)
    torch.save(state, tmp_path / "a.pth")
    backbone = twins_jax.backbone_from_pretrained(tmp_path / "a.pth")
    np.testing.assert_array_equal(backbone.norms[3].bias[...], state["backbone.norm_list.3.bias"].numpy())


def test_fresh_classifiers(upernet):
    with pytest.raises(InputError, match=r"^rngs=None: must be given for the fresh head of num_classes=3: .* has 5$"):
        twins_jax.segmenter_from_pretrained(upernet, num_classes=3)
    model = twins_jax.segmenter_from_pretrained(upernet, num_classes=3, rngs=nnx.Rngs(0))
    whole = variables(twins_jax.segmenter_from_pretrained(upernet, num_classes=5))
    found = variables(model)
    fresh = {path for path in whole if found[path].shape != whole[path].shape}
    modules = ("decode_head/classifier/conv", "auxiliary_head/classifier/conv")
    assert fresh == {f"{module}/{leaf}" for module in modules for leaf in ("kernel", "bias")}
    assert all(np.array_equal(found[path], whole[path]) for path in whole.keys() - fresh)
    assert (model.num_classes, model.class_names) == (3, None)
    kernels = [found[f"{module}/kernel"] for module in modules]
    assert all(0.005 < kernel.std() < 0.015 for kernel in kernels)
    for count in (0, "5", True):
        with pytest.raises(InputError, match=r"^num_classes=.*: must be None or an integer from 1"):
            twins_jax.segmenter_from_pretrained(upernet, num_classes=count)


def test_options(fpn):
    assert twins_jax.segmenter_from_pretrained(fpn).config.window_padding == "mask"
    model = twins_jax.segmenter_from_pretrained(fpn, window_padding="zero", param_dtype=jnp.bfloat16)
    assert model.config.window_padding == "zero"
    assert {leaf.dtype.name for leaf in jax.tree.leaves(twins_jax.get_params(model))} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(twins_jax.get_batch_stats(model))} == {"float32"}
    for option, allowed in (({"stage_norms": False}, "True"), ({"in_channels": 4}, "3"), ({"head": "upernet"}, "left")):
        with pytest.raises(InputError, match=f"^{next(iter(option))}=.*: must be {allowed}"):
            twins_jax.segmenter_from_pretrained(fpn, **option)


def test_saved_and_loaded(fpn, tmp_path):
    model = twins_jax.segmenter_from_pretrained(fpn, window_padding="zero")
    model.preprocessing = IMAGES
    model.save_pretrained(tmp_path / "saved")
    run(tmp_path / "saved", tmp_path / "orbax")
    for place in ("saved", "orbax"):
        loaded = twins_jax.segmenter_from_pretrained(tmp_path / place)
        assert_equal_models(loaded, model)
        assert (loaded.class_names, loaded.preprocessing, loaded.config) == (NAMES, IMAGES, model.config)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["head"] == "semantic_fpn"
    assert "pretrained_cfg" not in config  # timm has no such model
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config | {"preprocessing": {"side": 3}}))
    with pytest.raises(InputError, match=r"config\.json: preprocessing=\{'side': 3\}: must be an object of shorter, "):
        twins_jax.segmenter_from_pretrained(tmp_path / "saved")


def test_running_statistics_must_be_there_to_be_saved(fpn, tmp_path):
    model = twins_jax.segmenter_from_pretrained(fpn)
    del model.decode_head.scale_heads[0].convs[0].bn.mean
    with pytest.raises(InputError, match=r"- decode_head/scale_heads/0/convs/0/bn/mean \(128,\) is missing"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_the_card(fpn):
    model = of_model(twins_jax.segmenter_from_pretrained(fpn))
    card = model_card("a/b", model, Declared(class_names=NAMES, preprocessing=IMAGES))
    for line in (
        "pipeline_tag: image-segmentation",
        "- Images: shorter side 96 pixels, longer side at most 400",
        'model = twins_jax.segmenter_from_pretrained("hf-hub:a/b")',
    ):
        assert line in card.splitlines()
    assert "Semantic FPN segmenter of 5 classes" in card
    assert "timm" not in card


def test_parameters_by_depth(fpn):
    model = twins_jax.segmenter_from_pretrained(fpn)
    layers = {path: int(layer) for path, layer in named(twins_jax.layer_groups(model)).items()}
    assert layers.keys() == named(twins_jax.get_params(model)).keys()
    last = sum(SVT.depths) + 1
    assert {layers[path] for path in layers if path.startswith("decode_head/")} == {last}
    assert layers["backbone/norms/3/scale"] == sum(SVT.depths)
    params = twins_jax.get_params(model)
    frozen = named(twins_jax.param_mask(params, twins_jax.stages_below(model, 2)))
    assert {"/".join(path.split("/")[:3]) for path, is_frozen in frozen.items() if is_frozen} == {
        f"backbone/{part}/{stage}" for part in ("stages", "norms") for stage in (0, 1)
    }


def test_segmenters_are_not_exported(fpn, tmp_path):
    with pytest.raises(InputError, match=r"^model: must be a classifier or a backbone; a TwinsSegmenter cannot be exp"):
        twins_jax.export_model(twins_jax.segmenter_from_pretrained(fpn), tmp_path / "a.jax")
    assert not list(tmp_path.iterdir())
