"""The progress of a run: a bar on a terminal, and lines that can be searched where stderr is none."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

from .distributed import is_main_process

Clock = Callable[[], float]

Thing = TypeVar("Thing")

SECONDS_BETWEEN_LINES = 15.0
"""Of `counted`, where stderr is no terminal."""


class Progress:
    """Shows the steps of a run; a context manager. Only the main process shows anything.

    Args:
        start: steps that were done before.
        total: steps of the whole run.
        clock: returns seconds.
    """

    def __init__(self, start: int, total: int, clock: Clock = time.monotonic) -> None:
        self._start, self._total, self._clock = start, total, clock
        self._begin = clock()
        self._bar = tqdm(total=total, initial=start, unit="step", disable=not _has_bar())

    def update(self) -> None:
        """Counts a step."""
        self._bar.update()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the metrics that end with a step: "epoch", "loss", "learning_rate", "images_per_s" and "mfu"."""
        trained = f"epoch {values['epoch']:.1f} loss {values['loss']:.3g}"
        rate = f"{values['images_per_s']:.0f} images/s"
        if _has_bar():
            self._bar.set_postfix_str(f"{trained} {rate} mfu {values['mfu']:.2f}", refresh=False)
        elif is_main_process():
            # What is left has evaluations and checkpoints in it, as what is done has.
            left = (self._clock() - self._begin) / (step - self._start) * (self._total - step)
            learning_rate = f"lr {values['learning_rate']:.3g}"
            _write(f"step {step}/{self._total} {trained} {learning_rate} {rate} {duration(left)} left")

    def log_evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Prints the figures of an evaluation on stdout."""
        if is_main_process():
            texts = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in values.items()}
            figures = " ".join(f"{name} {text}" for name, text in texts.items())
            self._bar.write(f"step {step}/{self._total} eval {figures}")
            sys.stdout.flush()  # in its place where stdout and stderr are one file

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


def counted(
    what: str,
    unit: str,
    total: int,
    things: Iterable[Thing],
    *,
    size: Callable[[Thing], int] = lambda _: 1,
    clock: Clock = time.monotonic,
) -> Iterator[Thing]:
    """Yields things, and shows how many are done.

    Without a terminal a line comes every `SECONDS_BETWEEN_LINES`, "evaluating 12800/50000 examples"; none if it is
    done before, or fails.

    Args:
        what: is done, such as "evaluating".
        unit: of the count, such as "examples".
        total: number of units in all things.
        things: to yield.
        size: number of units in a thing.
        clock: returns seconds.
    """
    with tqdm(desc=what, unit=f" {unit}", total=total, leave=False, disable=not _has_bar()) as bar:
        due, done = clock() + SECONDS_BETWEEN_LINES, 0
        for thing in things:
            now = clock()
            if now >= due and is_main_process() and not _has_bar():
                _write(f"{what} {done}/{total} {unit}")
                due = now + SECONDS_BETWEEN_LINES
            yield thing
            count = min(size(thing), total - done)
            done += count
            bar.update(count)


def duration(seconds: float) -> str:
    """Writes a length of time with its two largest units: 45s, 12m30s, 3h05m, 2d04h."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d{h:02}h"
    if h:
        return f"{h}h{m:02}m"
    return f"{m}m{s:02}s" if m else f"{s}s"


def _has_bar() -> bool:
    return is_main_process() and sys.stderr.isatty()


def _write(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
