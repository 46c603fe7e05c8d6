"""The reasons for a run to end before its last step."""


class DivergedError(ArithmeticError):
    """A loss or a gradient is NaN or infinite."""


class PreemptedError(Exception):
    """The run was asked to stop, and has saved its state."""
