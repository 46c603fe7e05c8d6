"""Files of `jax.export`: read back by `jax.export` alone, and compared with the model."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

import twins_jax
from tests.export.conftest import NAMES, PREPROCESSING, names_in
from tests.support.models import PCPVT, SVT, backbone, classifier, random_array, relative_error, run
from twins_jax import ExportError, InputError, TwinsClassifier, export_model
from twins_jax.export import stablehlo_file
from twins_jax.preprocess import center_crop, preprocess

# Of the largest output, in float32; a norm's wrong epsilon or a tanh GELU gives more than 1e-5.
ROUNDING = 2e-6


def read(path: Path) -> jax_export.Exported:
    return jax_export.deserialize(bytearray(path.read_bytes()))


@pytest.fixture(scope="module")
def written(model: TwinsClassifier, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A file of pixels, and what writing it returned."""
    path = tmp_path_factory.mktemp("pixels") / "model.jax"
    return path, export_model(model, path, normalize=True)


def test_any_batch_of_images_by_the_models_preprocessing(
    model: TwinsClassifier, written: tuple[Path, dict[str, Any]]
) -> None:
    rng, call = np.random.default_rng(1), read(written[0]).call
    images = [rng.integers(256, size=(90, width, 3), dtype=np.uint8) for width in (80, 90, 100, 110, 120)]
    pixels = np.stack([center_crop(image, PREPROCESSING) for image in images])
    expected = run(model, np.concatenate([preprocess(image, PREPROCESSING) for image in images]))
    for batch in (1, 2, 5):
        assert relative_error(call(pixels[:batch]), expected[:batch]) < ROUNDING


def test_a_process_without_this_library(
    model: TwinsClassifier, written: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    pixels = np.random.default_rng(2).integers(256, size=(1, 64, 64, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    code = (
        "import sys; sys.modules |= dict.fromkeys(('twins_jax', 'flax'))\n"
        "import pathlib, jax, numpy\n"
        f"call = jax.export.deserialize(pathlib.Path({str(written[0])!r}).read_bytes()).call\n"
        "numpy.save('logits.npy', call(numpy.load('images.npy')))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    mean, std = np.float32(PREPROCESSING.mean), np.float32(PREPROCESSING.std)
    expected = run(model, (pixels / np.float32(255) - mean) / std)
    assert relative_error(np.load(tmp_path / "logits.npy"), expected) < ROUNDING


def test_the_manifest_is_beside_the_file(written: tuple[Path, dict[str, Any]]) -> None:
    path, returned = written
    manifest = json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))
    assert manifest == returned
    [check] = manifest.pop("check")
    assert check["rounding"] > 1e-9  # the model in float64 is not the model in float32
    assert 0 <= check["difference"] <= check["bound"] == 4 * max(check["rounding"], 2.0**-23) < 1e-5
    assert manifest.pop("versions").keys() == {"twins_jax", "python", "jax", "jaxlib"}
    assert manifest.pop("calling_convention_version") == read(path).calling_convention_version
    assert manifest == {
        "architecture": "custom",
        "num_classes": 10,
        "label_names": list(NAMES),
        "problem_type": "multi_label_classification",
        "window_padding": "zero",
        "pretrained_cfg": {
            "input_size": [3, 64, 64],
            "crop_pct": 0.8,
            "mean": [0.4, 0.5, 0.6],
            "std": [0.2, 0.25, 0.3],
            "interpolation": "box",
        },
        "input": {
            "name": "images",
            "shape": ["batch", 64, 64, 3],
            "dtype": "uint8",
            "values": "RGB pixels from 0 to 255",
        },
        "outputs": [{"name": "logits", "shape": ["batch", 10], "dtype": "float32"}],
        "platforms": ["cpu", "cuda", "tpu"],
    }


def test_the_program_is_portable(written: tuple[Path, dict[str, Any]]) -> None:
    exported = read(written[0])
    assert exported.platforms == ("cpu", "cuda", "tpu")
    text = exported.mlir_module()
    assert set(re.findall(r"custom_call @(\w+)", text)) <= {"shape_assertion"}
    assert "gather" not in text
    assert exported.nr_devices == 1


@pytest.mark.usefixtures("_unchecked")
def test_options_for_one_platform_and_for_training_leave_no_trace(tmp_path: Path) -> None:
    config = dataclasses.replace(SVT, depths=(1, 1, 1, 1))
    special = dataclasses.replace(
        config, attention_implementation="pallas", remat=True, drop_path_rate=0.1, dropout_rate=0.1
    )
    for name, one in (("plain.jax", config), ("special.jax", special)):
        export_model(classifier(one), tmp_path / name, image_size=32)
    assert (tmp_path / "plain.jax").read_bytes() == (tmp_path / "special.jax").read_bytes()


@pytest.mark.usefixtures("_unchecked")
def test_maps_of_a_dense_backbone(tmp_path: Path) -> None:
    dense = backbone(dataclasses.replace(SVT, in_channels=1, window_padding="mask", stage_norms=True))
    manifest = export_model(dense, tmp_path / "dense.jax", image_size=(45, 70))
    images = random_array(2, 45, 70, 1)
    maps, expected = read(tmp_path / "dense.jax").call(images), run(dense, images)
    assert len(maps) == 4
    for ours, theirs in zip(maps, expected, strict=True):
        assert relative_error(ours, theirs) < ROUNDING
    assert [output["name"] for output in manifest["outputs"]] == ["c2", "c3", "c4", "c5"]
    assert manifest["outputs"][1]["shape"] == ["batch", 5, 8, 32]
    assert manifest["window_padding"] == "mask"
    assert "pretrained_cfg" not in manifest  # of one channel nothing is known


@pytest.mark.usefixtures("_unchecked")
def test_features_in_half_precision_of_one_batch(tmp_path: Path) -> None:
    model = classifier(dataclasses.replace(PCPVT, dtype=jnp.bfloat16), 0)
    manifest = export_model(model, tmp_path / "half.jax", image_size=64, batch_size=2)
    assert manifest["outputs"] == [{"name": "features", "shape": [2, 64], "dtype": "bfloat16"}]
    # Of the published weights, at the file's own size.
    assert manifest["pretrained_cfg"]["mean"] == [0.485, 0.456, 0.406]
    assert manifest["pretrained_cfg"]["input_size"] == [3, 64, 64]
    with pytest.raises(ValueError, match="called with"):
        read(tmp_path / "half.jax").call(random_array(1, 64, 64, 3))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(twins_jax.get_params(model)))
    assert (tmp_path / "half.jax").stat().st_size < 3 * parameters  # two bytes each


def test_a_file_that_differs_is_not_kept(
    model: TwinsClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.jax"
    path.write_text("old")
    batches: list[int] = []

    def compute(images: np.ndarray) -> list[np.ndarray]:
        batches.append(len(images))
        return [np.zeros((len(images), 10))]

    monkeypatch.setattr(stablehlo_file, "load", lambda _: compute)
    with pytest.raises(ExportError, match=r"model\.jax: not written: its logits differ from the model's by 1\.0e\+00 "):
        export_model(model, path, overwrite=True)
    assert batches == [1, 3]
    assert names_in(tmp_path) == ["model.jax"]
    assert path.read_text() == "old"


@pytest.mark.usefixtures("_unchecked")
def test_files_are_overwritten_only_when_asked(
    model: TwinsClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stablehlo_file, "write", lambda _, path: Path(path).write_text("new") and {})
    monkeypatch.setattr(stablehlo_file, "load", lambda _: None)
    for name in ("model.jax", "model.jax.json"):
        (tmp_path / name).write_text("old")
        with pytest.raises(InputError, match=rf"{name}: exists already"):
            export_model(model, tmp_path / "model.jax")
        assert names_in(tmp_path) == [name]
        export_model(model, tmp_path / "model.jax", overwrite=True)
        assert names_in(tmp_path) == ["model.jax", "model.jax.json"]
        assert (tmp_path / "model.jax").read_text() == "new"
        for left in tmp_path.iterdir():
            left.unlink()
