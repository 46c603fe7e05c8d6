"""The parts that the command lines of the benchmarks share."""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence

from twins_jax import list_models
from twins_jax.config import MIN_IMAGE_SIZE
from twins_jax.errors import InputError, require

EXIT_BAD_INPUT = 2

Main = Callable[[Sequence[str]], int]


def command(main: Main) -> Main:
    """Makes a `main` print an InputError as one line on stderr, and return the exit code 2 for it."""

    @functools.wraps(main)
    def run(arguments: Sequence[str]) -> int:
        try:
            return main(arguments)
        except InputError as error:
            sys.stderr.write(f"error: {error}\n")
            return EXIT_BAD_INPUT

    return run


def check_cases(args: argparse.Namespace) -> None:
    """Checks the flags that list the cases to measure: `--variants`, `--batch` and `--size`.

    Raises:
        InputError: a variant is unknown, a batch is empty, or images are smaller than the models take.
    """
    known = list_models()
    for name in args.variants:
        require("--variants", name, name in known, f"one of {', '.join(known)}")
    for batch in args.batch:
        require("--batch", batch, batch >= 1, "an integer from 1")
    for size in args.size:
        require("--size", size, size >= MIN_IMAGE_SIZE, f"an integer from {MIN_IMAGE_SIZE}")
