"""Each option of a model against `torch_twins`, on random weights that go through a file."""

import functools
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch

import twins_jax
from tests.parity import torch_twins
from tests.parity.reference import Comparison, compare_models, load, load_backbone, relative_error


class Case(NamedTuple):
    """A model and the size of its images; without `num_classes` it is a backbone, 0 leaves out the head."""

    height: int
    width: int
    padding: torch_twins.Padding
    stage_norms: bool = False
    in_channels: int = 3
    num_classes: int | None = None
    name: str = "twins_svt_tiny"


# Maps of 57x77, 28x38, 14x19 and 7x9: windows of 7 tile one side of each, where "mask" masks nothing.
# Maps of 64x80, 32x40, 16x20 and 8x10: they tile no side.
DENSE = [Case(*size, padding, stage_norms=True) for size in ((230, 311), (256, 320)) for padding in ("zero", "mask")]
OTHERS = [
    # Maps of 24x32, 12x16, 6x8 and 3x4: the last one is smaller than a window.
    Case(97, 131, "mask", in_channels=4, num_classes=10),
    # Maps of 56x56, 28x28, 14x14 and 7x7: windows tile all.
    Case(224, 224, "mask", in_channels=1, num_classes=0),
]
# Compiling takes the time: the dense backbone that upstream published is compiled for float32 only, once with each
# padding and once at each size.
DENSE_SMALL = [case._replace(name="twins_svt_small") for case in (DENSE[1], DENSE[2])]
each = functools.partial(
    pytest.mark.parametrize, "comparison", indirect=True, scope="module", ids=lambda case: "-".join(map(str, case))
)


@pytest.fixture(scope="module")
def comparison(request: pytest.FixtureRequest) -> Comparison:
    case: Case = request.param
    weights = torch_twins.random_weights(
        case.name, in_channels=case.in_channels, num_classes=case.num_classes, stage_norms=case.stage_norms
    )
    ours: twins_jax.TwinsBackbone | twins_jax.TwinsClassifier
    if case.num_classes is None:
        dense = {f"backbone.{name}": tensor for name, tensor in weights.items()}  # upstream's names
        ours = load_backbone(dense, window_padding=case.padding)
    else:
        ours = load(weights, window_padding=case.padding)

    def run(images: torch.Tensor) -> dict[str, torch.Tensor]:
        cast = {name: tensor.to(images.dtype) for name, tensor in weights.items()}
        return torch_twins.forward(cast, images, case.name, case.padding)

    images = np.random.default_rng(0).standard_normal((1, case.height, case.width, case.in_channels), np.float32)
    return compare_models(run, ours, images)


@each(OTHERS + DENSE)
def test_equals_pytorch_in_float64(comparison: Comparison) -> None:
    comparison.check_float64()


@each(OTHERS + DENSE_SMALL)
def test_rounds_as_little_as_pytorch_in_float32(comparison: Comparison) -> None:
    comparison.check_float32()


@pytest.mark.parametrize("name", ["twins_pcpvt_small", "twins_svt_small"])
def test_the_truth_equals_timm(timm: ModuleType, name: str) -> None:
    weights = {key: w.double() for key, w in torch_twins.random_weights(name, num_classes=10).items()}
    theirs = timm.create_model(name, num_classes=10).double().eval()
    theirs.load_state_dict(weights)
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 97, 131, 3)))
    with torch.no_grad():
        found = torch_twins.forward(weights, images, name, "zero")
        tokens, maps = theirs.forward_intermediates(images.permute(0, 3, 1, 2))
        expected = {f"map {i}": x.permute(0, 2, 3, 1) for i, x in enumerate(maps)}
        expected["logits"] = theirs.forward_head(tokens)
    assert found.keys() == expected.keys()
    for key, truth in expected.items():
        assert relative_error(found[key].numpy(), truth.numpy()) < 1e-13, key
