"""Training in bfloat16 on float32 parameters against the same run in float32."""

from pathlib import Path

import numpy as np
import pytest

import twins_jax.config
from tests.scripts.mixed_precision import compare
from tests.support import runs
from tests.support.alone import call_main
from tests.support.models import SVT

ARGUMENTS = (
    *("--model.name", "narrow", "--steps", "80", "--batch_size", "16", "--eval_every_steps", "80"),
    *("--optim.learning_rate", "0.03", "--optim.warmup_epochs", "0.2", "--log_every_steps", "1"),
)


def test_losses_follow_float32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`mixed_precision.py` is the long form: 200 steps of the recipe, and the distance of two seeds."""
    monkeypatch.setitem(twins_jax.config.VARIANTS, "narrow", SVT)
    losses = {}
    for dtype in ("float32", "bfloat16"):
        workdir = tmp_path / dtype
        arguments = [*ARGUMENTS, "--distributed.mode", "off", "--model.dtype", dtype, "--workdir", str(workdir)]
        code, _, errors = call_main(arguments)
        assert code == 0, errors
        losses[dtype] = np.array([line["loss"] for line in runs.metrics(workdir) if line["split"] == "train"])
    assert losses["float32"][-20:].mean() < 0.8 * losses["float32"][:5].mean()
    assert compare(losses["bfloat16"], losses["float32"])["moving_average"] < 0.02
