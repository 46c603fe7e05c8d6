"""The flags that the command lines of the benchmarks share."""

import argparse

from twins_jax import list_models
from twins_jax.config import MIN_IMAGE_SIZE
from twins_jax.errors import require

MAX_BATCH, MAX_IMAGE_SIZE, MAX_SECONDS = 2**20, 2**14, 3600
"""Bounds of a case to measure: more is a slip of the finger."""


def check_cases(args: argparse.Namespace) -> None:
    """Checks the flags that list the cases to measure: `--variants`, `--batch`, `--size` and `--seconds`.

    Raises:
        InputError: a variant is unknown, a batch is empty, images are smaller than the models take, either is larger
            than any device holds, or the time is none.
    """
    known = list_models()
    for name in args.variants:
        require("--variants", name, name in known, f"one of {', '.join(known)}")
    for batch in args.batch:
        require("--batch", batch, 1 <= batch <= MAX_BATCH, f"an integer from 1 to {MAX_BATCH}")
    for size in args.size:
        allowed = f"an integer from {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE}"
        require("--size", size, MIN_IMAGE_SIZE <= size <= MAX_IMAGE_SIZE, allowed)
    require("--seconds", args.seconds, 0 < args.seconds <= MAX_SECONDS, f"a number above 0, up to {MAX_SECONDS}")
