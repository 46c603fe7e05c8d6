"""The six published variants: to JAX and back bit by bit, and the same function as timm's."""

import pytest
import torch

import port_weights
from twins_jax.config import VARIANTS
from twins_jax.port.source import read_weights
from twins_jax.port.verify import Input, verify

PUBLISHED = [name for name in VARIANTS if name != "twins_svt_tiny"]
SIZES = (Input(1, 224, 224), Input(2, 64, 96), Input(1, 97, 131))


@pytest.mark.parametrize("name", PUBLISHED)
def test_there_and_back_and_the_same_logits(timm, make_model, tmp_path, name):
    state = make_model(name).state_dict()
    source, orbax, back = tmp_path / "timm.pth", tmp_path / "orbax", tmp_path / "back.pth"
    torch.save(state, source)
    assert port_weights.main([str(source), str(orbax)]) == 0
    assert port_weights.main([str(orbax), str(back)]) == 0
    returned = torch.load(back, weights_only=True)
    assert returned.keys() == state.keys()
    assert all(torch.equal(returned[key], state[key]) for key in state)

    timm.create_model(name, num_classes=10, checkpoint_path=str(back))  # raises where a name or shape does not fit

    weights = read_weights(back)
    report = verify(weights, orbax, inputs=SIZES)
    assert report.model == name
    assert report.holds, report.to_text()
    assert report.top1_agreement == 1.0
