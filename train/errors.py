"""The reasons for a run to end before its last step, or in vain."""

import signal
from typing import Any


class DivergedError(ArithmeticError):
    """A loss or a gradient is NaN or infinite."""


class PreemptedError(Exception):
    """A signal asked the run to stop, and it has saved its state."""

    def __init__(self, message: str, signum: signal.Signals = signal.SIGTERM) -> None:
        super().__init__(message)
        self.signum = signum


class IncompleteError(Exception):
    """The run has its result, but something else that was asked for failed.

    Attributes:
        final: the result, as `train.loop.run` returns it.
    """

    def __init__(self, message: str, final: dict[str, Any]) -> None:
        super().__init__(message)
        self.final = final
