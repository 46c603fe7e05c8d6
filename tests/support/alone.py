"""A whole run on digits that was left alone, with which the others are compared."""

import contextlib
import dataclasses
import functools
import gc
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from tests.support import runs
from tests.support.compilation import fast_compilation
from train.experiment import Experiment
from train.flops import Performance
from train.main import main

STEPS = 16
# Checkpoints of every fourth step, all of them kept: a copy can go on from any.
PLAN = ("--steps", str(STEPS), "--checkpoint.every_steps", "4", "--checkpoint.keep", "9", "--eval_every_steps", "8")

RunMain = Callable[..., tuple[int, str, str]]
"""(workdir, further arguments) -> exit code, stdout, stderr."""


def call_main(arguments: Sequence[str]) -> tuple[int, str, str]:
    """Runs in this process, compiled as `short.COMMAND` does: exit code, stdout and stderr."""
    gc.collect()  # Orbax leaves coroutines that raise when they are freed, at a bad moment inside Python's parser
    output, errors = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        jax.numpy_dtype_promotion("standard"),  # as outside of the tests
        fast_compilation(),  # runs that must give the same bits are compiled in the same way
    ):
        code = main(arguments)
    return code, output.getvalue(), errors.getvalue()


def last_line(output: str) -> dict[str, Any]:
    final: dict[str, Any] = json.loads(output.splitlines()[-1].removeprefix("final: "))
    return final


@dataclasses.dataclass(frozen=True)
class Alone:
    """The run that was left alone; `built` is without initial weights, which its first step was given.

    `performance` is what it counted and measured to print its first line.
    """

    workdir: Path
    output: str
    errors: str
    built: Experiment
    performance: Performance

    @property
    def final(self) -> dict[str, Any]:
        return last_line(self.output)

    @functools.cached_property
    def saved(self) -> dict[str, Any]:
        """The content of its last checkpoint."""
        return runs.saved(self.workdir, STEPS)

    def assert_same_end(self, workdir: Path, *, metrics: bool = True) -> None:
        assert runs.differences(self.saved, runs.saved(workdir, STEPS)) == []
        if metrics:
            assert runs.metrics(workdir) == runs.metrics(self.workdir)

    def copy_until(self, step: int, target: Path) -> Path:
        """The workdir as it was when this step had been saved, and the run then cut off a little later."""
        shutil.copytree(self.workdir, target)
        for later in runs.checkpoints(target):
            if later > step:
                shutil.rmtree(target / "checkpoints" / str(later))
        return target
