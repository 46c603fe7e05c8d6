"""Segmenters from weights: functions that give them, fresh classifiers, options, saving, and what else takes them."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import twins_jax
from tests.support.models import SVT, named
from tests.support.porting import run
from tests.support.segmenter_files import IMAGES, NAMES, assert_equal_models, variables
from twins_jax.errors import InputError
from twins_jax.port.card import model_card
from twins_jax.port.convert import Declared
from twins_jax.port.infer import of_model
from twins_jax.pretrained import model_from_pretrained


@pytest.fixture(autouse=True, scope="module")
def _small(small_segmenters):
    """Of every test here."""


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
