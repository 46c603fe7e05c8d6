"""Detectors' files: names of mmdet, bits there and back, what is declared, fresh layers, `--verify`, errors."""

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.torch
import torch
from flax import nnx

import port_weights
import twins_jax
from tests.support.compilation import fast_compilation
from tests.support.detector_files import (
    CHANNELS,
    HEADS,
    HIDDEN,
    LEFTOVERS,
    NAMES,
    State,
    random_state,
    save_as_mmcv,
    small_detectors,
)
from tests.support.porting import assert_same, run
from tests.support.segmenter_files import assert_equal_models, variables
from twins_jax.detection.preprocess import DetectionPreprocessing
from twins_jax.errors import InputError
from twins_jax.port.card import model_card
from twins_jax.port.convert import Declared, port
from twins_jax.port.infer import Inferred, of_model
from twins_jax.port.names import find_heads, without_wrappers
from twins_jax.port.read import read_weights
from twins_jax.port.verify import OUTPUTS, Input, verify
from twins_jax.pretrained import model_from_pretrained

IMAGES = DetectionPreprocessing(96, 160, (0.5, 0.4, 0.3), (0.25, 0.3, 0.1 + 0.2), divisor=64)
NOUNS = {"retinanet": "a RetinaNet detector", "mask_rcnn": "a Mask R-CNN detector"}


@pytest.fixture(autouse=True, scope="module")
def _small():
    """Of every test here."""
    with fast_compilation():  # no test asks for a bound on the rounding
        yield from small_detectors()


@pytest.fixture(scope="module")
def state_of() -> Callable[[str], State]:
    made = functools.cache(random_state)
    return lambda head: {name: tensor.clone() for name, tensor in made(head).items()}


@pytest.fixture(scope="module")
def files(state_of, tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of each detector as mmcv's runner writes it."""
    folder = tmp_path_factory.mktemp("detectors")
    return {head: save_as_mmcv(state_of(head), folder / f"{head}.pth") for head in HEADS}


@pytest.mark.parametrize("head", HEADS)
def test_bits_there_and_back(head, files, state_of, tmp_path, capsys):
    source, orbax, ours = files[head], tmp_path / "orbax", tmp_path / "ours.safetensors"
    run(source, orbax)
    output = capsys.readouterr().out
    assert "of upstream detection names: micro" in output
    assert f"not ported: 4 tensors: {', '.join(LEFTOVERS)}\n" in output
    run(orbax, tmp_path / "back.pth")
    assert_same(torch.load(tmp_path / "back.pth", weights_only=True), state_of(head))
    run(source, ours)
    run(ours, tmp_path / "back.safetensors")
    assert_same(safetensors.torch.load_file(tmp_path / "back.safetensors"), state_of(head))
    for path in (source, orbax, ours, tmp_path / "back.safetensors"):
        assert read_weights(path).declared.class_names == NAMES
        assert port(read_weights(path)).model == Inferred("micro", 3, 3, stage_norms=True, head=head)


def test_kernels_that_are_more_than_permuted(files, state_of):
    params, state = port(read_weights(files["mask_rcnn"])).params, state_of("mask_rcnn")
    first = state["roi_head.bbox_head.shared_fcs.0.weight"].numpy()
    ours = params["box_head/shared_fcs/0/kernel"]
    assert ours.shape == (49 * CHANNELS, HIDDEN)
    for y, x, channel in ((0, 0, 3), (2, 5, 0), (6, 1, 15)):  # [h, w, C] flattened here, [C, h, w] in PyTorch
        np.testing.assert_array_equal(ours[(7 * y + x) * CHANNELS + channel], first[:, 49 * channel + 7 * y + x])
    upsample = state["roi_head.mask_head.upsample.weight"].numpy()  # [in, out, 2, 2]
    assert params["mask_head/upsample/kernel"].shape == (CHANNELS, 2, 2, CHANNELS)
    np.testing.assert_array_equal(params["mask_head/upsample/kernel"][3, 0, 1, 5], upsample[3, 5, 0, 1])


@pytest.mark.parametrize("head", HEADS)
def test_each_function_names_the_right_one(head, files, tiny_pth, tmp_path, caplog):
    for load in (twins_jax.from_pretrained, twins_jax.segmenter_from_pretrained):
        with pytest.raises(InputError, match=f": holds {NOUNS[head]}: use detector_from_pretrained$"):
            load(files[head])
    with pytest.raises(InputError, match=r": holds a classifier without a detection head: use from_pretrained$"):
        twins_jax.detector_from_pretrained(tiny_pth)
    with caplog.at_level(logging.WARNING):
        backbone = twins_jax.backbone_from_pretrained(files[head])
    assert "tensors not ported: neck.lateral_convs.0.conv.weight" in caplog.text
    detector = model_from_pretrained(files[head], requires_head=True)
    assert type(detector) is {"retinanet": twins_jax.TwinsRetinaNet, "mask_rcnn": twins_jax.TwinsMaskRCNN}[head]
    assert_equal_models(backbone, detector.backbone)
    assert (backbone.config.stage_norms, detector.config.window_padding) == (True, "zero")
    assert (detector.class_names, detector.preprocessing) == (NAMES, None)
    backbone.save_pretrained(tmp_path / "backbone")
    with pytest.raises(InputError, match=r"holds a backbone without a detection head: use backbone_from_pretrained$"):
        twins_jax.detector_from_pretrained(tmp_path / "backbone")
    with pytest.raises(InputError, match=r"holds a backbone without a classifier: use backbone_from_pretrained$"):
        model_from_pretrained(tmp_path / "backbone", requires_head=True)


def test_a_segmenter_is_no_detector(fpn):
    with pytest.raises(InputError, match=r": holds a Semantic FPN segmenter: use segmenter_from_pretrained$"):
        twins_jax.detector_from_pretrained(fpn)


FRESH = {
    "retinanet": {"heads/cls": 0.01},
    "mask_rcnn": {"box_head/cls": 0.01, "box_head/reg": 0.001, "mask_head/logits": (2 / 5) ** 0.5},
}
"""The modules that depend on the number of classes, and the deviation of their initial values with five of them."""


@pytest.mark.parametrize("head", HEADS)
def test_fresh_layers(head, files):
    with pytest.raises(InputError, match=r"^rngs=None: must be given for the fresh head of num_classes=5: .* has 3$"):
        twins_jax.detector_from_pretrained(files[head], num_classes=5)
    model = twins_jax.detector_from_pretrained(files[head], num_classes=5, rngs=nnx.Rngs(0))
    found, whole = variables(model), variables(twins_jax.detector_from_pretrained(files[head], num_classes=3))
    fresh = {path for path in whole if found[path].shape != whole[path].shape}
    assert fresh == {f"{module}/{leaf}" for module in FRESH[head] for leaf in ("kernel", "bias")}
    assert all(np.array_equal(found[path], whole[path]) for path in whole.keys() - fresh)
    assert (model.num_classes, model.class_names) == (5, None)
    for module, deviation in FRESH[head].items():
        assert found[f"{module}/kernel"].std() == pytest.approx(deviation, rel=0.3)
    for count in (0, "5", True):
        with pytest.raises(InputError, match=r"^num_classes=.*: must be None or an integer from 1"):
            twins_jax.detector_from_pretrained(files[head], num_classes=count)


def test_options(files):
    model = twins_jax.detector_from_pretrained(files["retinanet"], window_padding="mask", param_dtype=jnp.bfloat16)
    assert model.config.window_padding == "mask"
    assert {leaf.dtype.name for leaf in jax.tree.leaves(twins_jax.get_params(model))} == {"bfloat16"}
    for option, allowed in (({"stage_norms": False}, "True"), ({"in_channels": 4}, "3"), ({"head": "upernet"}, "left")):
        with pytest.raises(InputError, match=f"^{next(iter(option))}=.*: must be {allowed}"):
            twins_jax.detector_from_pretrained(files["retinanet"], **option)


@pytest.mark.parametrize("head", HEADS)
def test_saved_and_loaded(head, files, tmp_path):
    model = twins_jax.detector_from_pretrained(files[head], window_padding="mask")
    model.preprocessing = IMAGES
    model.save_pretrained(tmp_path / "saved")
    run(tmp_path / "saved", tmp_path / "orbax")
    for place in ("saved", "orbax"):
        loaded = twins_jax.detector_from_pretrained(tmp_path / place)
        assert_equal_models(loaded, model)
        assert (loaded.class_names, loaded.preprocessing, loaded.config) == (NAMES, IMAGES, model.config)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (config["head"], config["preprocessing"]["divisor"]) == (head, 64)
    for change, message in (
        ({"preprocessing": {"side": 3}}, r"preprocessing=\{'side': 3\}: must be an object of shorter, .*, divisor"),
        ({"preprocessing": {"longer": 3}}, r"config\.json: preprocessing: longer=3: must be an integer from shorter"),
        ({"head": "upernet", "preprocessing": None}, f"says head 'upernet', its weights are of '{head}'"),
    ):
        (tmp_path / "saved" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=message):
            twins_jax.detector_from_pretrained(tmp_path / "saved")


def test_a_training_run(files, tmp_path):
    model = twins_jax.detector_from_pretrained(files["retinanet"])
    params = twins_jax.get_params(model)
    items = {"params": params, "ema": jax.tree.map(lambda leaf: -leaf, params)}
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(20, args=ocp.args.Composite(**{name: ocp.args.StandardSave(tree) for name, tree in items.items()}))
    config = {
        "head": "retinanet",
        "model": {"name": "micro", "window_padding": "zero"},
        "data": {"source": "folder", "shorter": 96, "longer": 160},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "dataset.json").write_text(json.dumps({"class_names": NAMES}))
    expected = variables(model)
    for ema in (False, True):
        loaded = twins_jax.detector_from_pretrained(tmp_path, ema=ema)
        for path, array in variables(loaded).items():
            np.testing.assert_array_equal(array, -expected[path] if ema else expected[path])
        assert (loaded.class_names, loaded.preprocessing) == (NAMES, DetectionPreprocessing(96, 160))


@pytest.mark.parametrize("meta", [3, {"CLASSES": NAMES[:2]}, {"CLASSES": "abc"}])
def test_records_that_are_no_class_names_are_passed_over(state_of, tmp_path, meta):
    path = save_as_mmcv(state_of("mask_rcnn"), tmp_path / "a.pth", meta)
    assert read_weights(path).declared.class_names is None


def test_a_wrapped_and_prefixed_checkpoint(state_of, files, tmp_path):
    state = {
        f"module.{name.replace('mask_head.', 'mask_head._orig_mod.')}": tensor
        for name, tensor in state_of("mask_rcnn").items()
    }
    save_as_mmcv(state, tmp_path / "a.pth")
    loaded = twins_jax.detector_from_pretrained(tmp_path / "a.pth")
    assert_equal_models(loaded, twins_jax.detector_from_pretrained(files["mask_rcnn"]))
    for root in ("rpn_head", "bbox_head", "roi_head", "neck"):
        assert without_wrappers(f"module.{root}._orig_mod.x.module.bias") == f"module.{root}.x.bias"


def test_heads_of_detectors_are_no_classifiers(state_of):
    state = {name: tensor.numpy() for name, tensor in state_of("mask_rcnn").items()}
    state["roi_head.bbox_head.fc_cls.weight"] = np.ones((4, 64), np.float32)  # as wide as the last stage
    assert find_heads(state, "backbone.") == ()
    assert find_heads({f"a.{name}": tensor for name, tensor in state.items()}, "a.backbone.") == ()


def test_inspect(files, capsys):
    run("--inspect", files["mask_rcnn"])
    text = capsys.readouterr().out
    facts = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines())
    model = twins_jax.detector_from_pretrained(files["mask_rcnn"])
    assert facts["parameters"].strip() == f"{sum(array.size for array in variables(model).values()):,}"
    assert "statistics" not in facts
    assert facts["head"].strip() == "a Mask R-CNN detector"
    assert facts["classes"].strip() == r"3: 'RBC', 'b\x1b[31m', 'Käse'"
    rows = {line.split()[0]: line.split()[1] for line in text.splitlines() if line.startswith(("box_head/", "rpn/"))}
    assert rows == {
        "rpn/conv": f"{9 * CHANNELS * CHANNELS + CHANNELS:,}",
        "rpn/cls": f"{3 * CHANNELS + 3}",
        "rpn/reg": f"{12 * CHANNELS + 12}",
        "box_head/shared_fcs": f"{49 * CHANNELS * HIDDEN + HIDDEN + HIDDEN * HIDDEN + HIDDEN:,}",
        "box_head/cls": f"{4 * HIDDEN + 4}",
        "box_head/reg": f"{12 * HIDDEN + 12}",
    }


def test_misfits_are_listed_in_the_file_s_names(state_of, tmp_path, capsys):
    state = state_of("mask_rcnn")
    del state["rpn_head.rpn_conv.bias"]
    state["roi_head.bbox_head.fc_reg.weight"] = torch.ones(4, HIDDEN)  # class-agnostic
    state["roi_head.bbox_head.shared_fcs.0.weight"] = torch.ones(HIDDEN, 48 * CHANNELS + 1)
    state["roi_head.mask_head.convs.4.conv.bias"] = torch.ones(CHANNELS)
    state["neck.fpn_convs.4.conv.weight"] = torch.ones(CHANNELS, CHANNELS, 3, 3)
    state["roi_head.mask_head.upsample.weight"][3] = torch.nan
    path = tmp_path / "a.pth"
    torch.save(state, path)
    assert port_weights.main([str(path), str(tmp_path / "orbax")]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[0] == f"error: {path}: 6 tensors do not fit micro"
    assert sorted(error[1:]) == [
        "  ! roi_head.bbox_head.fc_reg.weight has shape (4, 24), expected (12, 24)",
        "  ! roi_head.bbox_head.shared_fcs.0.weight has shape (24, 769), expected (24, 784)",
        "  ! roi_head.mask_head.upsample.weight holds NaN or infinity",
        "  + neck.fpn_convs.4.conv.weight (16, 16, 3, 3) is left over",
        "  + roi_head.mask_head.convs.4.conv.bias (16,) is left over",
        "  - rpn_head.rpn_conv.bias (16,) is missing",
    ]


def test_the_card(files):
    model = of_model(twins_jax.detector_from_pretrained(files["retinanet"]))
    card = model_card("a/b", model, Declared(class_names=NAMES, preprocessing=IMAGES))
    for line in (
        "pipeline_tag: object-detection",
        "- Images: shorter side 96 pixels, longer side at most 160",
        'model = twins_jax.detector_from_pretrained("hf-hub:a/b")',
    ):
        assert line in card.splitlines()
    assert "RetinaNet detector of 3 classes" in card


def test_detectors_are_not_exported(files, tmp_path):
    with pytest.raises(InputError, match=r"^model: must be a classifier or a backbone; a TwinsRetinaNet cannot be exp"):
        twins_jax.export_model(twins_jax.detector_from_pretrained(files["retinanet"]), tmp_path / "a.jax")
    assert not list(tmp_path.iterdir())


ONE = (Input(2, 64, 96),)
DAMAGED = {
    "retinanet": ("logits", lambda model: model.heads.cls_convs[2].kernel),
    "mask_rcnn": ("masks", lambda model: model.mask_head.upsample.kernel),
}
"""The output, and the kernel, which is turned by a place."""


@pytest.mark.parametrize("head", HEADS)
def test_verify(head, files):
    weights, model = read_weights(files[head]), twins_jax.detector_from_pretrained(files[head])
    report = verify(weights, model, inputs=ONE)
    assert [row.output for row in report.comparisons] == [*(f"stage {i}" for i in range(1, 5)), *OUTPUTS[head]]
    assert report.top1_agreement == 1
    assert all(0 < row.our_error < 2e-6 for row in report.comparisons), report.to_text()
    output, kernel_of = DAMAGED[head]
    kernel_of(model)[...] = jnp.roll(kernel_of(model)[...], 1, axis=-1)
    damaged = verify(weights, model, inputs=ONE)
    assert [row.output for row in damaged.comparisons if row.our_error > 2e-6] == [output]
    assert not damaged.holds
    with pytest.raises(InputError, match=f"holds {NOUNS[head]}, which a TwinsBackbone cannot be compared with"):
        verify(weights, twins_jax.backbone_from_pretrained(files[head]))
