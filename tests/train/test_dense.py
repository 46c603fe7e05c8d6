"""The model with which a run of a dense task begins; `test_segmentation_run.py` and its sister load real files."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flax import nnx

from train.dense import create_dense_model
from twins_jax import InputError
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
