"""A run that version 0.1 began goes on, and ends as it would have.

`support/run_0_1.tar.gz` holds the folder of a run by the last code before the tasks (ae93345): its checkpoint after
step 3 of 6, and the metrics of all six steps.
"""

import tarfile
from pathlib import Path

import pytest

import twins_jax.config
from tests.support import runs
from tests.support.alone import call_main
from tests.support.models import NANO
from tests.support.paths import ROOT

ARGUMENTS = (
    *("digits", "--model.name", "nano", "--data.dir", "digits", "--distributed.mode", "off"),
    *("--batch_size", "8", "--eval_batch_size", "100", "--steps", "6", "--eval_every_steps", "3"),
    *("--log_every_steps", "1", "--checkpoint.every_steps", "3", "--checkpoint.keep", "9"),
    *("--optim.ema_decay", "0.9", "--optim.warmup_epochs", "0", "--mix.erase_probability", "0.25"),
)


def test_it_ends_as_it_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(twins_jax.config.VARIANTS, "nano", NANO)
    with tarfile.open(ROOT / "tests" / "support" / "run_0_1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    workdir = tmp_path / "run"
    expected = runs.metrics(workdir)
    code, output, errors = call_main([*ARGUMENTS, "--workdir", str(workdir)])
    assert code == 0, errors
    assert f"{workdir} holds step 3 of 6: going on from there" in output
    assert runs.checkpoints(workdir) == [3, 6]

    found = runs.metrics(workdir)
    assert [(line["step"], line["split"]) for line in found] == [(line["step"], line["split"]) for line in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("loss", "grad_norm", "ema_loss", "learning_rate"):
            if name in theirs:
                # The same bits on the processor that wrote it, float32's rounding on others; another image, another
                # draw of noise or another learning rate changes a loss by a hundredth.
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
