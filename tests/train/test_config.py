import dataclasses
import re
from typing import Any

import pytest

from train.config import CheckpointConfig, DistributedConfig, ModelConfig
from train.recipes import digits
from train.tasks.classification.config import ClassificationConfig, ClassificationOptimConfig
from twins_jax import InputError

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("config", "prefix", "field", "values"),
    [
        (ClassificationOptimConfig, "optim.", "learning_rate", (0.0, -1.0, NAN, INF)),
        (ClassificationOptimConfig, "optim.", "warmup_learning_rate", (0.0, NAN)),
        (ClassificationOptimConfig, "optim.", "min_learning_rate", (0.0, NAN)),
        (ClassificationOptimConfig, "optim.", "clip_norm", (0.0, NAN)),
        (ClassificationOptimConfig, "optim.", "warmup_epochs", (-1.0, NAN, INF)),
        (ClassificationOptimConfig, "optim.", "weight_decay", (-0.1, NAN, INF)),
        (ClassificationOptimConfig, "optim.", "layer_decay", (0.0, 1.1, NAN)),
        (ClassificationOptimConfig, "optim.", "accumulate", (0,)),
        (ClassificationOptimConfig, "optim.", "ema_decay", (-0.1, 1.0, NAN)),
        (CheckpointConfig, "checkpoint.", "every_steps", (0,)),
        (CheckpointConfig, "checkpoint.", "keep", (0,)),
        (DistributedConfig, "distributed.", "processes", (0,)),
        (DistributedConfig, "distributed.", "process_id", (-1, 1)),
        (DistributedConfig, "distributed.", "timeout_seconds", (0,)),
        (ClassificationConfig, "", "workdir", ("",)),
        (ClassificationConfig, "", "seed", (-1, 2**31)),
        (ClassificationConfig, "", "epochs", (0.0, NAN, INF)),
        (ClassificationConfig, "", "steps", (0, -5)),
        (ClassificationConfig, "", "batch_size", (0,)),
        (ClassificationConfig, "", "eval_batch_size", (0,)),
        (ClassificationConfig, "", "eval_every_steps", (0,)),
        (ClassificationConfig, "", "log_every_steps", (0,)),
        (ClassificationConfig, "", "fsdp", (0,)),
        (ClassificationConfig, "", "label_smoothing", (-0.1, 1.0, NAN)),
    ],
)
def test_field_out_of_range(config: type[Any], prefix: str, field: str, values: tuple[Any, ...]) -> None:
    start = digits() if config is ClassificationConfig else config()
    for value in values:
        with pytest.raises(InputError, match=rf"^{prefix}{field}={re.escape(repr(value))}: must be "):
            dataclasses.replace(start, **{field: value})


def test_unknown_variant() -> None:
    with pytest.raises(InputError, match=r"'twins_svt_huge'.*twins_svt_tiny"):
        dataclasses.replace(digits(), model=ModelConfig(name="twins_svt_huge"))


def test_option_out_of_range() -> None:
    with pytest.raises(InputError, match=r"^model\.drop_path_rate=1.5: "):
        dataclasses.replace(digits(), model=ModelConfig(name="twins_svt_tiny", drop_path_rate=1.5))


def test_model_is_recorded_with_its_defaults() -> None:
    model = ModelConfig(name="twins_pcpvt_small", drop_path_rate=0.25)
    assert dataclasses.replace(digits(), model=model).model == {
        "name": "twins_pcpvt_small",
        "drop_path_rate": 0.25,
        "dropout_rate": 0.0,
        "window_padding": "zero",
        "attention_implementation": "auto",
        "dtype": "float32",
        "remat": False,
    }


def test_batch_is_cut_into_equal_parts() -> None:
    optim = ClassificationOptimConfig(accumulate=3)
    with pytest.raises(InputError, match=r"^batch_size=64: must be a multiple of optim.accumulate, 3$"):
        dataclasses.replace(digits(), optim=optim)
    dataclasses.replace(digits(), optim=optim, batch_size=66)


@pytest.mark.parametrize(
    ("steps", "epochs", "warmup_epochs", "expected"),
    [
        # 1000 examples in batches of 50 are 20 steps an epoch.
        (None, 3.0, 1.5, (60, 30)),
        (7, 3.0, 1.5, (7, 6)),  # the warm-up ends before the run does
        (7, 3.0, 0.0, (7, 0)),
        (1, 3.0, 1.5, (1, 0)),
        (None, 0.01, 1.5, (1, 0)),  # at least one step
        (None, 0.08, 0.01, (2, 0)),
    ],
)
def test_length(steps: int | None, epochs: float, warmup_epochs: float, expected: tuple[int, int]) -> None:
    optim = ClassificationOptimConfig(warmup_epochs=warmup_epochs)
    config = dataclasses.replace(digits(), steps=steps, epochs=epochs, batch_size=50, optim=optim)
    total = config.total_steps(1000)
    warmup = optim.warmup_steps(batch_size=50, total_steps=total, train_examples=1000)
    assert (total, warmup) == expected
