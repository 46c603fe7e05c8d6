import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util

from train.config import OptimConfig, RunConfig
from train.optim import make_optimizer, make_schedule
from train.recipes import digits
from train.task import DatasetInfo, Task
from train.tasks.classification.config import ClassificationOptimConfig

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
    config = dataclasses.replace(
        digits(), steps=4, optim=ClassificationOptimConfig(warmup_epochs=0, layer_decay=layer_decay)
    )
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


@dataclasses.dataclass(frozen=True)
class PolyConfig(OptimConfig):
    """Settings of another task: a polynomial schedule in steps, decay of every parameter but one, no batch scaling."""

    learning_rate: float = 1e-2
    weight_decay: float = 0.1
    spared: str = ""
    head_scale: float = 1.0

    def make_schedule(self, *, batch_size: int, total_steps: int, train_examples: int) -> optax.Schedule:
        assert (batch_size, train_examples) == (64, 1442)
        return optax.polynomial_schedule(self.learning_rate, 0.0, power=1, transition_steps=total_steps)

    def decays(self, path: str, leaf: jax.Array) -> bool:
        assert leaf.shape == SHAPES[path]
        return path != self.spared

    def update_scales(self, model_name: str) -> Callable[[str], float] | None:
        assert model_name == "twins_svt_tiny"
        if self.head_scale == 1:
            return None
        return lambda path: self.head_scale if path.startswith("head/") else 1.0


class OtherConfig(RunConfig):
    """A run of that task."""

    def make_task(self, info: DatasetInfo | None = None) -> Task:  # noqa: ARG002 - RunConfig's
        raise AssertionError("the optimizer asks for no task")


@pytest.mark.parametrize(
    "optim",
    [PolyConfig(), PolyConfig(spared="norm/scale"), PolyConfig(head_scale=0.25)],
    ids=["all", "spared", "scaled"],
)
def test_another_tasks_settings_drive_the_optimizer(optim: PolyConfig) -> None:
    """Under constant gradients Adam moves by the learning rate times their sign; the decay comes on top."""
    config = OtherConfig(
        workdir="unused",
        model=digits().model,
        data=digits().data,
        optim=optim,
        checkpoint=digits().checkpoint,
        steps=4,
        batch_size=64,
    )
    rng = np.random.default_rng(0)
    start = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    gradients = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    expected: dict[str, Any] = {name: value.astype(np.float64) for name, value in start.items()}
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules divide the int32 step
        optimizer = make_optimizer(config, make_schedule(config, 1442))
        params: Any = traverse_util.unflatten_dict({n: jax.numpy.array(v) for n, v in start.items()}, sep="/")
        state = optimizer.init(params)
        for rate in (1e-2, 7.5e-3, 5e-3, 2.5e-3):
            updates, state = optimizer.update(traverse_util.unflatten_dict(gradients, sep="/"), state, params)
            params = optax.apply_updates(params, updates)
            for name, value in expected.items():
                decay = 0.1 * value * (name != optim.spared)
                scale = optim.head_scale if name == "head/kernel" else 1.0
                expected[name] = value - scale * rate * (np.sign(gradients[name]) + decay)
    for name, actual in traverse_util.flatten_dict(params, sep="/").items():
        # Moves of 0.025, in float32: values of up to 3 are rounded four times, Adam's bias corrections to 1e-6.
        np.testing.assert_allclose(actual, expected[name], rtol=0, atol=1e-6, err_msg=name)
