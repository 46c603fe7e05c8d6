"""The table of names against the names of timm's models, and of the heads of mmsegmentation and mmdet."""

import numpy as np
import pytest

from tests.support import detector_files
from twins_jax.config import VARIANTS, variant_config
from twins_jax.port.infer import Inferred
from twins_jax.port.rules import LAYOUTS, OURS, OURS_BACKBONE, TORCH, TORCH_DENSE, TORCH_DETECTION
from twins_jax.segmentation.segmenter import HEADS

PUBLISHED = [name for name in VARIANTS if name != "twins_svt_tiny"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_those_of_timm(timm, name):
    import torch

    with torch.device("meta"):
        theirs = {key: tuple(value.shape) for key, value in timm.create_model(name).state_dict().items()}
    expected = {}
    for path, shape in Inferred(name, 3, 1000, stage_norms=False).expected().items():
        row = TORCH.to_theirs(path)
        expected[row.name] = tuple(shape[row.axes.index(axis)] for axis in range(len(shape)))
    assert expected == theirs


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.label)
def test_every_row_goes_both_ways(layout):
    for row in layout.rows:
        name, path = (template.format(s=2, b=13, i=3) for template in (row.theirs, row.path))
        assert layout.to_ours(name) == (path, row.axes, row.flattened)
        assert layout.to_theirs(path) == (name, row.axes, row.flattened)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.label)
def test_no_two_rows_match_one_name(layout):
    for side in ("theirs", "path"):
        names = [getattr(row, side) for row in layout.rows]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        (TORCH, "blocks.0.01.norm1.weight"),
        (TORCH, "blocks.0.1.norm1.weight "),
        (TORCH, "blocks.-1.1.norm1.weight"),
        (TORCH, "xblocks.0.1.norm1.weight"),
        (TORCH, "backbone.norm_list.0.weight"),
        (TORCH_DENSE, "norm_list.0.weight"),
        (OURS, "stages/0/peg/kernel"),
        (OURS_BACKBONE, "backbone/stages/0/peg/kernel"),
        (OURS_BACKBONE, "norm/scale"),
    ],
)
def test_other_names_are_not_known(layout, name):
    assert layout.to_ours(name) is None


def test_stage_norms_have_a_row():
    assert TORCH_DENSE.to_ours("backbone.norm_list.3.weight") == ("backbone/norms/3/scale", (0,), None)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["twins_pcpvt_small", "twins_svt_small"])
def test_names_and_shapes_are_mmsegmentation_s(head, name):
    model = Inferred(name, 3, 150, stage_norms=False, head=head)
    from tests.parity import torch_segmentation

    theirs = torch_segmentation.random_weights(head, variant_config(name).embed_dims, 150)
    ours, stats = {}, set()
    for path, shape in model.expected().items():
        row = TORCH_DENSE.to_theirs(path)
        ours[row.name] = tuple(shape[axis] for axis in np.argsort(row.axes))
        stats |= {row.name} if path in model.statistics() else set()
    heads = {key: shape for key, shape in ours.items() if not key.startswith("backbone.")}
    assert heads == {key: tuple(tensor.shape) for key, tensor in theirs.items()}
    assert stats == {key for key in theirs if "running_" in key}


@pytest.mark.parametrize("head", detector_files.HEADS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_mmdet_s(head, name):
    config = variant_config(name)
    model = Inferred(name, 3, 80, stage_norms=config.window_size is not None, head=head)
    paths = model.expected()
    rows = {path: TORCH_DETECTION.to_theirs(path) for path in paths}
    theirs = {row.name: tuple(paths[path][axis] for axis in np.argsort(row.axes)) for path, row in rows.items()}
    assert len(theirs) == len(paths)
    assert [TORCH_DETECTION.to_ours(row.name).name for row in rows.values()] == list(paths)
    heads = {key: shape for key, shape in theirs.items() if not key.startswith("backbone.")}
    assert heads == detector_files.shapes(head, config.embed_dims, 80)
    assert not model.statistics()
