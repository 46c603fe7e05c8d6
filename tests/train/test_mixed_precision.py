"""Training in bfloat16 on float32 parameters against the same run in float32."""

from pathlib import Path

from tests.scripts.mixed_precision import compare, train

ARGUMENTS = ("--steps", "80", "--batch_size", "16", "--optim.learning_rate", "0.03", "--optim.warmup_epochs", "0.2")


def test_losses_follow_float32(compile_cache: Path, tmp_path: Path) -> None:
    """`mixed_precision.py` is the long form: 200 steps of the recipe, and the distance of two seeds."""
    losses = {dtype: train(tmp_path / dtype, compile_cache, dtype, [*ARGUMENTS]) for dtype in ("float32", "bfloat16")}
    assert losses["float32"][-20:].mean() < 0.8 * losses["float32"][:5].mean()
    assert compare(losses["bfloat16"], losses["float32"])["moving_average"] < 0.02
