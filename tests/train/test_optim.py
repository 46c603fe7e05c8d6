import dataclasses
import importlib
import math
from types import ModuleType
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx, traverse_util

import twins_jax
from train.config import OptimConfig, RunConfig
from train.optim import decay_mask, layer_scales, make_optimizer, make_schedule
from train.recipes import digits, imagenet_svt_small
from twins_jax.config import variant_config
from twins_jax.port.rules import TORCH

Tree = dict[str, Any]


@pytest.mark.parametrize(
    ("config", "examples", "peak", "warmup", "total"),
    [
        (imagenet_svt_small(), 1_281_167, 1e-3, 6256, 375342),  # 5e-4 x 1024 / 512
        (dataclasses.replace(digits(), steps=50, batch_size=8), 1442, 8e-3 * 8 / 512, 49, 50),
        (dataclasses.replace(digits(), steps=40, optim=OptimConfig(warmup_epochs=0)), 1442, 5e-4 * 64 / 512, 0, 40),
    ],
    ids=["imagenet", "short", "no-warmup"],
)
def test_schedule(config: RunConfig, examples: int, peak: float, warmup: int, total: int) -> None:
    schedule = jax.jit(make_schedule(config, examples))
    for step in sorted({0, 1, warmup // 2, warmup - 1, warmup, (warmup + total) // 2, total - 1, total} - {-1}):
        if step < warmup:
            expected = 1e-6 + (peak - 1e-6) * step / warmup
        else:
            cosine = math.cos(math.pi * (step - warmup) / (total - warmup))
            expected = 1e-5 + (peak - 1e-5) * (1 + cosine) / 2
        # A handful of float32 operations on values up to the peak.
        assert float(schedule(step)) == pytest.approx(expected, abs=4 * 2**-23 * peak), step


def shapes(variant: str) -> Tree:
    return twins_jax.get_params(nnx.eval_shape(lambda: twins_jax.create_model(variant, rngs=nnx.Rngs(0))))


def timm_groups(timm: ModuleType, variant: str, layer_decay: float) -> dict[str, tuple[float, float]]:
    """(learning-rate scale, weight decay) that timm gives each parameter, by our paths."""
    torch = importlib.import_module("torch")
    param_groups_layer_decay = importlib.import_module("timm.optim").param_groups_layer_decay

    with torch.device("meta"):
        model = timm.create_model(variant)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = param_groups_layer_decay(
        model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=layer_decay
    )
    found = {}
    for group in groups:
        for parameter in group["params"]:
            match = TORCH.to_ours(names[id(parameter)])
            assert match is not None
            found[match.name] = (group["lr_scale"], group["weight_decay"])
    return found


@pytest.mark.parametrize("variant", ["twins_pcpvt_small", "twins_svt_small"])
def test_groups_are_timms(timm: ModuleType, variant: str) -> None:
    params = shapes(variant)
    decayed = traverse_util.flatten_dict(decay_mask(params), sep="/")
    scales = traverse_util.flatten_dict(layer_scales(params, 0.75, variant_config(variant).depths), sep="/")
    expected = timm_groups(timm, variant, 0.75)
    assert {name: (scales[name], 0.05 if decayed[name] else 0.0) for name in decayed} == expected


def test_what_is_decayed_by_name() -> None:
    # Upstream and timm: none on biases, norms, 1-d parameters and pos_block.*, which is the PEG here.
    for name, is_decayed in traverse_util.flatten_dict(decay_mask(shapes("twins_svt_tiny")), sep="/").items():
        assert is_decayed == (name.endswith("/kernel") and "/peg/" not in name), name


# One tensor of each kind, and two layers that layer-wise decay tells apart.
SHAPES = {
    "backbone/stages/0/patch_embed/proj/kernel": (2, 2, 3, 4),
    "backbone/stages/1/peg/kernel": (3, 3, 1, 4),
    "backbone/stages/3/blocks/1/mlp/fc1/bias": (5,),
    "backbone/stages/3/blocks/1/mlp/fc1/kernel": (4, 5),
    "head/kernel": (4, 6),
    "norm/scale": (4,),
}
DECAYED = {name for name in SHAPES if name.endswith("kernel") and "peg" not in name}


@pytest.mark.parametrize("gradient_norm", [0.5, 50.0], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_steps_equal_torch(gradient_norm: float, layer_decay: float) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    config = dataclasses.replace(digits(), steps=4, optim=OptimConfig(warmup_epochs=0, layer_decay=layer_decay))
    rates = [5e-4 / 8, 4e-4 / 8, 1e-4 / 8, 1e-6]
    # twins_svt_tiny has 8 blocks, hence 10 layers; the PEG of stage 1 goes with the third block.
    layers = {"backbone/stages/0/patch_embed/proj/kernel": 0, "backbone/stages/1/peg/kernel": 3}
    layers |= {name: 8 for name in SHAPES if "/blocks/1/" in name or name.startswith("norm/")}

    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
    groups = [
        {
            "params": [tensor],
            "weight_decay": 0.05 * (name in DECAYED),
            "scale": layer_decay ** (9 - layers.get(name, 9)),
        }
        for name, tensor in tensors.items()
    ]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # optax raises floats to its int32 count
        optimizer = make_optimizer(config, lambda count: jax.numpy.array(rates)[count])
        params: Any = traverse_util.unflatten_dict({n: jax.numpy.array(v) for n, v in start.items()}, sep="/")
        state = optimizer.init(params)
        for rate in rates:
            gradients = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
            scale = gradient_norm / math.sqrt(sum((g**2).sum() for g in gradients.values()))
            gradients = {name: scale * gradient for name, gradient in gradients.items()}
            for name, tensor in tensors.items():
                tensor.grad = torch.tensor(gradients[name])
            torch.nn.utils.clip_grad_norm_(tensors.values(), 5.0)
            for group in reference.param_groups:
                group["lr"] = rate * group["scale"]
            reference.step()
            as_tree = traverse_util.unflatten_dict({n: jax.numpy.array(g) for n, g in gradients.items()}, sep="/")
            updates, state = optimizer.update(as_tree, state, params)
            params = optax.apply_updates(params, updates)
    actual = traverse_util.flatten_dict(params, sep="/")
    for name, tensor in tensors.items():
        moved = np.asarray(actual[name]) - start[name]
        expected = tensor.detach().numpy() - start[name]
        # float64; but torch divides by the norm + 1e-6: its clipped gradients are 1e-6 / 50 smaller.
        np.testing.assert_allclose(moved, expected, rtol=1e-6, atol=1e-12 * np.abs(expected).max(), err_msg=name)
