"""Wording of messages."""


def one_line(error: BaseException) -> str:
    """The first line of an exception's message that says something, or else its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
