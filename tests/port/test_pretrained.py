"""from_pretrained and backbone_from_pretrained against timm's outputs."""

import logging
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import twins_jax
from twins_jax.errors import InputError
from twins_jax.port.convert import port
from twins_jax.port.read import read_weights

IMAGES = np.random.default_rng(0).standard_normal((2, 64, 96, 3), dtype=np.float32)


def call(model, images=IMAGES):
    apply, params = twins_jax.split_model(model)
    with jax.default_matmul_precision("highest"):
        return jax.tree.map(np.asarray, jax.jit(apply)(params, jnp.asarray(images)))


def relative_error(values, truth):
    return np.abs(values - truth).max() / np.abs(truth).max()


def test_classifier_is_timms(make_model, tiny_pth, tiny_orbax):
    with torch.no_grad():
        truth = make_model("twins_svt_tiny")(torch.from_numpy(IMAGES).permute(0, 3, 1, 2)).numpy()
    for source in (tiny_pth, tiny_orbax):
        assert relative_error(call(twins_jax.from_pretrained(source)), truth) < 2e-6


def test_half_precision_weights_become_float32(tiny, tmp_path):
    torch.save({name: tensor.half() for name, tensor in tiny.items()}, tmp_path / "a.pth")
    params = twins_jax.get_params(twins_jax.from_pretrained(tmp_path / "a.pth"))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_fresh_head(tiny_pth):
    with pytest.raises(InputError, match=r"^rngs=None: must be given for the fresh head"):
        twins_jax.from_pretrained(tiny_pth, num_classes=3)
    whole = twins_jax.get_params(twins_jax.from_pretrained(tiny_pth))
    for num_classes, outputs in ((3, 3), (0, 256)):
        model = twins_jax.from_pretrained(tiny_pth, num_classes=num_classes, rngs=nnx.Rngs(0))
        apply, params = twins_jax.split_model(model)
        assert jax.eval_shape(apply, params, IMAGES).shape == (2, outputs)
        jax.tree.map(np.testing.assert_array_equal, params["backbone"], whole["backbone"])


def test_backbone_of_a_segmentation_checkpoint(dense, tmp_path, caplog):
    torch.save({"state_dict": dense}, tmp_path / "a.pth")
    with caplog.at_level(logging.WARNING):
        backbone = twins_jax.backbone_from_pretrained(tmp_path / "a.pth", window_padding="mask")
    assert "decode_head.conv_seg.weight" in caplog.text
    assert backbone.config.stage_norms
    assert backbone.config.window_padding == "mask"
    with pytest.raises(InputError, match="use backbone_from_pretrained"):
        twins_jax.from_pretrained(tmp_path / "a.pth")


def test_detection_pcpvt_has_no_stage_norms(make_model, tmp_path):
    state = make_model("twins_pcpvt_small").state_dict()
    state = {f"module.backbone.{name}": tensor for name, tensor in state.items() if name.split(".")[0] != "head"}
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    assert port(read_weights(tmp_path / "a.pth")).not_ported == ("backbone.norm.weight", "backbone.norm.bias")
    backbone = twins_jax.backbone_from_pretrained(tmp_path / "a.pth")
    assert not backbone.config.stage_norms
    apply, params = twins_jax.split_model(backbone)
    assert [feature.shape[-1] for feature in jax.eval_shape(apply, params, IMAGES)] == [64, 128, 320, 512]


def test_backbone_of_a_classifier(tiny_orbax):
    backbone = twins_jax.backbone_from_pretrained(tiny_orbax, drop_path_rate=0.1)
    classifier = twins_jax.from_pretrained(tiny_orbax)
    for ours, theirs in zip(call(backbone), call(classifier.backbone), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_dense_svt_starts_from_a_classifier(tiny_pth):
    plain = twins_jax.backbone_from_pretrained(tiny_pth)
    normed = twins_jax.backbone_from_pretrained(tiny_pth, stage_norms=True)
    expected, fresh = (twins_jax.get_params(model) for model in (plain, normed))
    for norm in fresh.pop("norms").values():
        assert np.asarray(norm["scale"]).min() == 1
        assert np.abs(norm["bias"]).max() == 0
    assert jax.tree.all(jax.tree.map(np.array_equal, expected, fresh))
    assert len(call(normed)) == 4


@pytest.mark.parametrize("overrides", [{"depths": 3}, {"in_channels": 4}, {"stage_norms": True}, {"nonsense": 1}])
def test_overrides_that_weights_rule_out(tiny_pth, overrides):
    with pytest.raises(InputError, match=next(iter(overrides))):
        twins_jax.from_pretrained(tiny_pth, **overrides)


def test_import_loads_nothing_heavy():
    heavy = ("torch", "timm", "orbax", "safetensors", "grain", "tensorflow_datasets", "huggingface_hub")
    code = f"import sys, twins_jax; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_writing_torch_files_needs_torch(tiny, tmp_path):
    import safetensors.torch

    safetensors.torch.save_file(tiny, tmp_path / "a.safetensors")
    torch.save({"model": tiny}, tmp_path / "a.pth")
    torch.save(tiny, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    code = (
        "import sys; sys.modules['torch'] = None; import port_weights as p, twins_jax;"
        f"twins_jax.from_pretrained('{tmp_path}/a.pth');"
        f"twins_jax.from_pretrained('{tmp_path}/legacy.pth');"
        f"assert p.main(['{tmp_path}/a.safetensors', '{tmp_path}/orbax']) == 0;"
        f"assert p.main(['{tmp_path}/orbax', '{tmp_path}/b.safetensors']) == 0;"
        f"sys.exit(p.main(['{tmp_path}/orbax', '{tmp_path}/b.pth']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "torch" in done.stderr
    assert done.stderr.count("\n") == 1
