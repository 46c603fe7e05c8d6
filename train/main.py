"""The command line of training: `python -m train.main [RECIPE] [--field value ...]`."""

import json
import sys
from collections.abc import Sequence

import tyro

from train.config import TrainConfig
from train.recipes import DEFAULT, RECIPES
from twins_jax.errors import InputError


def parse(arguments: Sequence[str]) -> TrainConfig:
    """The config that command-line arguments ask for; exits with code 2 on a bad one, naming it.

    Raises:
        InputError: the recipe is unknown, or a value is of the right type but not allowed.
    """
    has_recipe = bool(arguments) and not arguments[0].startswith("-")
    name = arguments[0] if has_recipe else DEFAULT.__name__
    if name not in RECIPES:
        raise InputError(f"recipe {name!r}: allowed are {', '.join(RECIPES)}")
    return tyro.cli(
        TrainConfig,
        prog=f"python -m train.main [{' | '.join(RECIPES)}]",
        description=f"Recipe {name}: {RECIPES[name].__doc__}",
        default=RECIPES[name](),
        args=list(arguments[has_recipe:]),
        use_underscores=True,
    )


def main(arguments: Sequence[str]) -> int:
    """Runs and returns the exit code: 0, or 2 for input that the caller can correct."""
    try:
        config = parse(arguments)
        from train.loop import run  # --help and bad arguments need not wait for JAX and the data libraries

        final = run(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("final: " + json.dumps(final))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
