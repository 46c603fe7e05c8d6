"""The model with which a run of a dense task begins; `test_segmentation_run.py` and its sister load real files."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.support.models import NANO
from train.dense import create_dense_model
from twins_jax import (
    InputError,
    TwinsSegmenter,
    create_segmenter,
    get_params,
    save_pretrained,
    segmenter_from_pretrained,
)
from twins_jax.config import VARIANTS
from twins_jax.segmentation.preprocess import SegmentationPreprocessing


def loaded(**changes: Any) -> SimpleNamespace:
    return SimpleNamespace(**({"head": "upernet", "num_classes": 3, "preprocessing": None} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "semantic_fpn"}, "of the head upernet: found semantic_fpn"),
        ({"num_classes": 4}, "of 3 classes, as the data: found 4"),
        ({"preprocessing": SegmentationPreprocessing(mean=(0.5, 0.5, 0.5))}, "of images with ImageNet's mean and std"),
        ({"preprocessing": SegmentationPreprocessing(std=(0.5, 0.5, 0.5))}, "of images with ImageNet's mean and std"),
    ],
)
def test_weights_that_do_not_fit_an_evaluation(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    config: Any = SimpleNamespace(model={"name": "nano"}, head="upernet", init=str(tmp_path), eval_only=True)

    def evaluated(found: SimpleNamespace) -> Any:
        def load(source: str, name: str) -> Any:
            assert (source, name) == (str(tmp_path), "nano")
            return found

        return create_dense_model(config, 3, nnx.Rngs(0), create=pytest.fail, load=load)

    for found in (loaded(), loaded(preprocessing=SegmentationPreprocessing(64, 128))):
        assert evaluated(found) is found
    with pytest.raises(InputError, match=f": must be {message}$"):
        evaluated(loaded(**changes))


@pytest.mark.parametrize("stage_norms", [True, False])
def test_a_run_can_go_on_without_the_weights_that_it_began_from(
    stage_norms: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of a segmenter give all they hold, or the backbone's where the run's model has other norms."""
    monkeypatch.setitem(VARIANTS, "nano", NANO)
    weights = create_segmenter("nano", head="semantic_fpn", num_classes=3, rngs=nnx.Rngs(1), stage_norms=stage_norms)
    save_pretrained(weights, tmp_path / "weights")

    def begin(init: str) -> TwinsSegmenter:
        config: Any = SimpleNamespace(model={"name": "nano"}, head="semantic_fpn", init=init, eval_only=False)
        load, create = segmenter_from_pretrained, create_segmenter
        return create_dense_model(config, 3, nnx.Rngs(0), create=create, load=load)

    begun, later = begin(str(tmp_path / "weights")), begin("")
    shapes = [jax.tree.map(jnp.shape, get_params(model)) for model in (begun, later)]
    assert shapes[0] == shapes[1]
    given, got = (jax.tree.leaves_with_path(get_params(model)) for model in (weights, begun))
    equal = {jax.tree_util.keystr(path) for path, leaf in got if any(np.array_equal(leaf, other) for _, other in given)}
    kernels = {jax.tree_util.keystr(path) for path, leaf in got if leaf.ndim > 1}
    heads = {name for name in kernels if "backbone" not in name}
    assert kernels - heads <= equal
    assert heads.issubset(equal) == stage_norms
