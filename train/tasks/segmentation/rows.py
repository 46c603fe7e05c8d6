"""Logits at the size of labels, a few rows at a time: those of whole images would take most of the memory."""

MAX_LOGITS = 2**23
"""Logits at the labels' size that are computed at a time, over all devices: 32 MiB of them."""


def rows_at_a_time(batch: int, height: int, width: int, num_classes: int) -> int:
    """Returns the rows of all images of a batch that are computed at a time."""
    return max(1, min(height, MAX_LOGITS // max(batch * width * num_classes, 1)))
