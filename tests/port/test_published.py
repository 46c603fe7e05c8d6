"""The six published variants: to JAX and back bit by bit, and the same function as timm's."""

import pytest
import torch

import port_weights
import twins_jax
from twins_jax.config import VARIANTS
from twins_jax.port.read import read_weights
from twins_jax.port.verify import Input, verify

PUBLISHED = [name for name in VARIANTS if name != "twins_svt_tiny"]
SIZES = (Input(1, 112, 112), Input(2, 64, 96), Input(1, 33, 95))


@pytest.mark.parametrize("name", PUBLISHED)
def test_there_and_back(make_model, tmp_path, name):
    """`tests/parity/test_models.py` shows that what was ported is the same function, for all six."""
    state = make_model(name).state_dict()
    source, orbax, back = tmp_path / "timm.pth", tmp_path / "orbax", tmp_path / "back.pth"
    torch.save(state, source)
    assert port_weights.main([str(source), str(orbax)]) == 0
    assert port_weights.main([str(orbax), str(back)]) == 0
    returned = torch.load(back, weights_only=True)
    assert returned.keys() == state.keys()
    assert all(torch.equal(returned[key], state[key]) for key in state)
    if name == "twins_svt_small":
        report = verify(read_weights(back), twins_jax.from_pretrained(orbax), inputs=SIZES)
        assert report.model == name
        assert report.holds, report.to_text()
        assert report.top1_agreement == 1.0


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_timm_loads_what_is_written(timm, make_model, tmp_path, suffix):
    state = make_model("twins_svt_small").state_dict()
    torch.save(state, tmp_path / "timm.pth")
    assert port_weights.main([str(tmp_path / "timm.pth"), str(tmp_path / "orbax")]) == 0
    back = str(tmp_path / f"back{suffix}")
    assert port_weights.main([str(tmp_path / "orbax"), back]) == 0
    loaded = timm.create_model("twins_svt_small", num_classes=10, checkpoint_path=back).state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)
