"""ONNX files, run by ONNX Runtime and compared with the model."""

import dataclasses
import json
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.export.conftest import NAMES, names_in
from tests.support.models import SVT, classifier, random_array, relative_error, run
from twins_jax import InputError, TwinsClassifier, export_model
from twins_jax.export import onnx_file
from twins_jax.preprocess import normalize

needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in onnx_file.PACKAGES), reason="needs the extra `onnx`"
)


@needs_onnx
def test_any_batch_of_pixels(model: TwinsClassifier, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import onnx
    import onnxruntime

    path = tmp_path / "model.onnx"
    with jax.numpy_dtype_promotion("standard"):  # as outside of the tests
        manifest = export_model(model, path, normalize=True)
    assert capfd.readouterr() == ("", "")
    assert names_in(tmp_path) == ["model.onnx"]
    assert manifest["check"][0]["difference"] <= manifest["check"][0]["bound"] < 1e-5

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["twins_jax"]) == manifest
    assert manifest["label_names"] == list(NAMES)
    assert manifest["input"]["shape"] == session.get_inputs()[0].shape == ["batch", 64, 64, 3]
    assert session.get_outputs()[0].shape == ["batch", 10]
    pixels = np.random.default_rng(1).integers(256, size=(5, 64, 64, 3), dtype=np.uint8)
    preprocessing = model.preprocessing
    assert preprocessing
    expected = run(model, np.asarray(normalize(pixels, preprocessing.mean, preprocessing.std)))
    for batch in (1, 2, 5):
        [logits] = session.run(["logits"], {"images": pixels[:batch]})
        assert relative_error(logits, expected[:batch]) < 2e-6

    graph = onnx.load(path).graph
    assert {node.domain for node in graph.node} == {""}
    assert {node.op_type for node in graph.node}.isdisjoint({"GatherND", "ScatterND", "Loop", "Dropout"})


@needs_onnx
@pytest.mark.usefixtures("_unchecked")
def test_one_batch(tmp_path: Path) -> None:
    """Of so many images that a program of JAX computes them in a loop that jax2onnx does not convert."""
    import onnxruntime

    model = classifier(SVT, 0)
    with jax.numpy_dtype_promotion("standard"):
        manifest = export_model(model, tmp_path / "model.onnx", image_size=(32, 48), batch_size=144)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert manifest["input"]["shape"] == session.get_inputs()[0].shape == [144, 32, 48, 3]
    assert session.get_outputs()[0].shape == manifest["outputs"][0]["shape"] == [144, 64]
    images = random_array(144, 32, 48, 3)
    assert relative_error(session.run(None, {"images": images})[0], run(model, images)) < 2e-6
    with pytest.raises(Exception, match="Expected: 144"):
        session.run(None, {"images": images[:1]})


@needs_onnx
def test_only_float32(tmp_path: Path) -> None:
    model = classifier(dataclasses.replace(SVT, dtype=jnp.bfloat16))
    with pytest.raises(InputError, match=r"^dtype='bfloat16': must be float32 for an ONNX file"):
        export_model(model, tmp_path / "model.onnx")
    assert names_in(tmp_path) == []


def test_without_the_extra(model: TwinsClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twins_jax.extra.find_spec", lambda name: None if name == "jax2onnx" else name)
    with pytest.raises(InputError, match=r"needs jax2onnx; install twins_jax with its extra `onnx`$"):
        export_model(model, tmp_path / "model.onnx")
