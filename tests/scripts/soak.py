"""Kills a training run again and again: `python tests/scripts/soak.py --kills 20 [--seed 0] [--steps 200]`.

The run is SIGKILLed at random moments (while it starts, steps or saves) and started again each time. It must end as the
same run does that was left alone: with the same parameters, optimizer, moving average, position in the data and metrics
bit for bit, the same checkpoints, and nothing else in its folder. Exit code 0 if it does.
"""
# ruff: noqa: T201 - a script

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support import runs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return soak(Path(folder), args.kills, args.steps, random.Random(args.seed))


def soak(folder: Path, kills: int, steps: int, rng: random.Random) -> int:
    alone, killed, cache = folder / "alone", folder / "killed", folder / "compiled"
    arguments = [*runs.ARGUMENTS, "--steps", str(steps), "--checkpoint.every_steps", "5", "--eval_every_steps", "20"]
    arguments += ["--model.dropout_rate", "0.1"]
    arguments += ["--mix.mixup_alpha", "0.8", "--mix.cutmix_alpha", "1.0"]
    finish([*arguments, "--workdir", str(alone)], cache)
    begin = time.monotonic()
    finish([*arguments, "--workdir", str(alone)], cache)  # which has no step left to do
    start_up = time.monotonic() - begin

    arguments += ["--workdir", str(killed)]
    for kill in range(1, kills + 1):
        process = runs.start(arguments, cache)
        begun, latest = last_step(killed), steps * kill // (kills + 1)  # the last kill still finds it at work
        kind, delay = rng.choice(("start", "step", "step", "save")), 0.0
        if kind == "start":
            delay = rng.uniform(0, start_up)
            runs.signal_when(process, signal.SIGKILL, lambda: True, delay)
        elif kind == "step":
            target, delay = rng.randint(begun + 1, max(latest, begun + 1)), rng.uniform(0, 0.1)
            runs.signal_when(process, signal.SIGKILL, lambda: last_step(killed) >= target, delay)  # noqa: B023
        else:
            known, delay = partial(killed).items(), rng.uniform(0, 0.05)
            runs.signal_when(process, signal.SIGKILL, lambda: bool(partial(killed).items() - known), delay)  # noqa: B023
        output, errors = process.communicate()
        state = (
            f"checkpoints {runs.checkpoints(killed)}, metrics until {last_step(killed)}, partial {[*partial(killed)]}"
        )
        print(f"kill {kill:2} at {kind:5} +{delay:.3f} s: exit {process.returncode}; {state}", flush=True)
        if process.returncode != -signal.SIGKILL:
            print(output, errors)
            return 1
    print(finish(arguments, cache))

    problems = runs.differences(runs.saved(alone, steps), runs.saved(killed, steps))
    if runs.metrics(alone) != runs.metrics(killed):
        problems.append("metrics.jsonl")
    if names(alone) != names(killed):
        problems.append(f"files: {names(alone)} and {names(killed)}")
    print(json.dumps({"kills": kills, "steps": steps, "differences": problems}))
    return 1 if problems else 0


def finish(arguments: list[str], cache: Path) -> str:
    process = runs.start(arguments, cache)
    output, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}\n{output}\n{errors}")
    return output


def last_step(workdir: Path) -> int:
    lines = runs.metrics(workdir)
    return lines[-1]["step"] if lines else 0


def partial(workdir: Path) -> dict[str, int]:
    """Checkpoints that are being written, or were when the run was killed, and when they last changed."""
    folder = workdir / "checkpoints"
    try:
        return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if not path.name.isdigit()}
    except FileNotFoundError:  # none yet, or one has just been completed
        return {}


def names(workdir: Path) -> list[str]:
    """Files and folders of a run, down to its checkpoints; event files are named by the time."""
    paths = [*workdir.iterdir(), *(workdir / "checkpoints").iterdir()]
    return sorted(str(path.relative_to(workdir)) for path in paths)


if __name__ == "__main__":
    sys.exit(main())
