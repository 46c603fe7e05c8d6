"""The command line of training: `python -m train.main [RECIPE] [--field value ...]`."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax

from twins_jax.errors import InputError, one_line, require

from .config import RunConfig
from .distributed import exit_lost_process, expect_exit, lost_connection
from .errors import DivergedError, PreemptedError
from .extra import TRAINING, check_installed
from .recipes import DEFAULT, RECIPES

EXIT_BAD_INPUT = 2
EXIT_DIVERGED = 3
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: start the same command again


def parse(arguments: Sequence[str]) -> RunConfig:
    """The config that `[RECIPE] [--field value ...]` asks for; exits with code 2 on a bad field or value, naming it.

    Raises:
        InputError: the recipe is unknown, or a value is not allowed.
    """
    config: RunConfig = parse_recipe(arguments, f"{__package__}.main")
    return config


def parse_recipe(arguments: Sequence[str], module: str, wrap: Callable[[RunConfig], Any] | None = None) -> Any:
    """The settings that `[RECIPE] [--field value ...]` asks for; exits with code 2 on a bad field or value, naming it.

    Args:
        arguments: of the command line.
        module: which `python -m` runs, for `--help`.
        wrap: makes the settings before any flag, a dataclass whose fields are the flags, from the recipe's config; that
            config itself if None.

    Raises:
        InputError: the recipe is unknown, or a value is not allowed.
    """
    import tyro  # of the extra `train`, which `main` asks for first

    from .flags import FLAGS

    has_recipe = bool(arguments) and not arguments[0].startswith("-")
    name = arguments[0] if has_recipe else DEFAULT.__name__
    require("recipe", name, name in RECIPES, f"one of {', '.join(RECIPES)}")
    config = RECIPES[name]()
    default = wrap(config) if wrap else config
    return tyro.cli(
        type(default),
        prog=f"python -m {module} [RECIPE]",
        description=f"Recipes: {', '.join(RECIPES)}.\n\nThis one, {name}: {RECIPES[name].__doc__}",
        default=default,
        args=list(arguments[has_recipe:]),
        use_underscores=True,
        registry=FLAGS,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs and returns the exit code: 0, or one of this module's `EXIT_` constants.

    The arguments are the command line's where none are given.

    With several processes it does not return where another one is lost: see `train.distributed.EXIT_LOST_PROCESS`.
    """
    try:
        check_installed(*TRAINING, purpose="training", extra="train")
        config = parse(sys.argv[1:] if arguments is None else arguments)
        from .loop import run  # late, so that --help does not wait for the data and checkpoint libraries

        final = run(config)
    except InputError as error:
        return _end(error, EXIT_BAD_INPUT)
    except DivergedError as error:
        return _end(error, EXIT_DIVERGED)
    except PreemptedError as error:
        return _end(error, EXIT_PREEMPTED)
    except Exception as error:
        if jax.process_count() > 1 and lost_connection(error):
            exit_lost_process(one_line(error))
        expect_exit(1)
        raise
    if jax.process_index() == 0:
        print("final: " + json.dumps(final))
    return 0


def _end(error: Exception, code: int) -> int:
    print(error if code == EXIT_PREEMPTED else f"error: {error}", file=sys.stderr)
    expect_exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
