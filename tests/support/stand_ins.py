"""Makes what the examples of the documents name: weights, a run, images, data sets and exported files, all small."""

import dataclasses
import json
import pickle
import shutil
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

import port_weights
import twins_jax
from tests.support import detection
from tests.support.models import NANO, classifier, named, random_module
from tests.support.paths import ROOT
from tests.support.segmentation import make_ade20k, make_folder

SMALL = dataclasses.replace(NANO, embed_dims=(32,) * 4, num_heads=(1,) * 4, depths=(1, 1, 1, 1))
"""Takes the place of the variants in examples: few different shapes, each of which JAX compiles."""


def make_weights(folder: Path, aside: Path) -> None:
    """Makes files of weights, and folders of a run, by every name; `aside` is a folder for what comes between."""
    save_file(named(twins_jax.get_params(classifier(NANO))), aside / "ours.safetensors")
    assert port_weights.main([str(aside / "ours.safetensors"), str(aside / "timm.safetensors")]) == 0
    variant = "twins_svt_small"
    for name in ("SRC", "alt_gvt_small.pth", variant, f"{variant}.pth", f"{variant}.safetensors"):
        shutil.copy(aside / "timm.safetensors", folder / name)  # files are known by their first bytes
    with tarfile.open(ROOT / "tests" / "support" / "run_0_1.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    for name in ("RUN", "workdir", "runs/digits"):
        shutil.copytree(folder / "run", folder / name)


def make_segmenter(folder: Path, aside: Path) -> None:
    """Makes a file of a segmenter's weights, with upstream's names."""
    model = random_module(
        lambda: twins_jax.create_segmenter("nano", head="semantic_fpn", num_classes=5, rngs=nnx.Rngs(0))
    )
    twins_jax.save_pretrained(model, aside / "segmenter")
    shutil.copy(aside / "segmenter" / "model.safetensors", folder / "fpn_svt_s.pth")


def make_detector(folder: Path, aside: Path) -> None:
    """Makes a file of a detector's weights, with upstream's names."""
    model = random_module(lambda: twins_jax.create_detector("nano", num_classes=3, rngs=nnx.Rngs(0)))
    twins_jax.save_pretrained(model, aside / "detector")
    shutil.copy(aside / "detector" / "model.safetensors", folder / "retinanet_svt_s.pth")


def make_boxes(folder: Path) -> None:
    """Makes data sets of images with boxes and masks."""
    detection.make_folder(folder / "BOXES")
    detection.make_folder(folder / "COCO", released=True)


def make_masks(folder: Path) -> None:
    """Makes data sets of images with masks."""
    make_folder(folder / "DATA")
    make_ade20k(folder / "ADEChallengeData2016")


def make_exports(folder: Path) -> None:
    """Makes exported files that return the mean of an image's pixels: a model's take a while."""
    shape = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch"), 224, 224, 3), np.float32)
    exported = jax.export.export(jax.jit(lambda images: images.mean((1, 2, 3))))(shape)
    (folder / "model.jax").write_bytes(exported.serialize())
    (folder / "model.jax.json").write_text(json.dumps({"input": {"name": "images"}}))
    onnx = pytest.importorskip("onnx")
    images, logits = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("images", ["batch", 224, 224, 3]), ("logits", ["batch", 1, 1, 1]))
    )
    node = onnx.helper.make_node("GlobalAveragePool", ["images"], ["logits"])
    graph = onnx.helper.make_graph([node], "mean", [images], [logits])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), folder / "model.onnx")


def make_images(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), np.uint8)

    def save(name: str, image: np.ndarray) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)

    for number, name in enumerate(("train/a/0.png", "train/b/0.png", "val/a/0.png", "val/b/0.png")):
        save(f"DATA/{name}", pixels[number])
        save(f"LABELS/{name}", pixels[number])
    for split in ("train", "val"):
        lines = (json.dumps({"file_name": f"{name}/0.png", "labels": [name]}) for name in "ab")
        (folder / "LABELS" / split / "metadata.jsonl").write_text("\n".join(lines))
    for name in ("photo.jpg", "other.jpg", "photos/a.jpg", "docs/digit.png"):
        save(name, pixels[0])
    cifar = {"data": pixels[:2, :32, :32].transpose(0, 3, 1, 2).reshape(2, -1), "labels": [0, 1]}
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (batches / name).write_bytes(pickle.dumps(cifar))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane", "cat"]}))
