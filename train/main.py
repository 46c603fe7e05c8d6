"""The command line of training: `python -m train.main [RECIPE] [--field value ...]`."""

import dataclasses
import inspect
import json
import signal
import sys
import textwrap
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax

from twins_jax.ending import command_line, say
from twins_jax.errors import InputError, did_you_mean, one_line, require
from twins_jax.extra import check_installed
from twins_jax.paths import source_path

from .config import RunConfig
from .console import lasting_output
from .distributed import exit_lost_process, expect_exit, lost_connection
from .errors import DivergedError, IncompleteError, PreemptedError
from .extra import TRAINING
from .recipes import DEFAULT, RECIPES
from .record import default_settings
from .workdir import CONFIG

EXIT_FAILED = 1
EXIT_DIVERGED = 3
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: start the same command again. Of other signals 128 more than their number


def parse(arguments: Sequence[str]) -> RunConfig:
    """The config that `[RECIPE] [--field value ...]` asks for.

    Raises:
        InputError: the recipe or a field is unknown, or a value is not allowed.
    """
    source, _ = _source(arguments)
    has_place = bool(source.workdir or source.config is None)
    require("workdir", source.workdir, has_place, "given beside config, whose run keeps its own folder")
    config: RunConfig = parse_recipe(arguments, f"{__package__}.main")
    return config


def parse_recipe(arguments: Sequence[str], module: str, wrap: Callable[[RunConfig], Any] | None = None) -> Any:
    """The settings that `[RECIPE] [--field value ...]` asks for.

    Fields without a flag are the recipe's; with `--config` they are a record's, and with `--eval_only` of the folder's
    checkpoint those of the folder's record.

    Args:
        arguments: of the command line.
        module: which `python -m` runs, for `--help`.
        wrap: makes the settings before any flag, a dataclass whose fields are the flags, from the recipe's config; that
            config itself if None.

    Raises:
        InputError: the recipe or a field is unknown, or a value is not allowed; or tyro is not installed.
    """
    has_recipe = bool(arguments) and not arguments[0].startswith("-")
    name = arguments[0] if has_recipe else DEFAULT.__name__
    similar = did_you_mean(name, RECIPES.keys(), most=2)
    require("recipe", name, name in RECIPES, f"one of {', '.join(RECIPES)}{similar}")
    source, flags = _source(arguments[has_recipe:])
    from .flags import read_flags  # late: `_source` says if its library is not installed

    config = _with_record(RECIPES[name](), source)
    default = wrap(config) if wrap else config
    prog, about = f"python -m {module} [RECIPE]", f"{name}: {inspect.getdoc(RECIPES[name])}"
    if {"-h", "--help"} & set(flags):
        _print_help(prog, about, default, config.advanced)
        raise SystemExit(0)
    flags = ["--help" if flag == HELP_ALL else flag for flag in flags]
    return read_flags(type(default), flags, prog=prog, description=about, default=default)


HELP_ALL = "--help_all"


def _print_help(prog: str, about: str, default: Any, advanced: Collection[str]) -> None:
    from .help import recipe_patterns, short_help

    recipes = textwrap.fill(
        f"recipes: {', '.join(recipe_patterns(RECIPES))}", 100, initial_indent="  ", subsequent_indent=" " * 11
    )
    print(
        f"usage: {prog} [--FLAG VALUE ...]\n\n{recipes}\n  --config RUN/config.json takes the settings of that run in "
        f"place of a recipe's, with a --workdir of its own\n  {HELP_ALL} shows all flags\n\n{about}\n\nIts flags in "
        f"common use, with the values that they have without a flag:\n\n{short_help(default, advanced)}"
    )


@dataclasses.dataclass(frozen=True)
class _Config:
    config: str | None = None


@dataclasses.dataclass(frozen=True)
class _Source(_Config):
    """The flags that decide where the settings without a flag come from."""

    workdir: str = ""
    eval_only: bool = False
    init: str = ""


def _source(arguments: Sequence[str]) -> tuple[_Source, list[str]]:
    """Reads these flags alone; also returns all flags but `config`, which is no setting."""
    check_installed("tyro", purpose="training", extra="train")
    from .flags import read_known_flags

    source, _ = read_known_flags(_Source, arguments, add_help=False)
    _, others = read_known_flags(_Config, arguments, add_help=False)
    return source, others


def _with_record(recipe: RunConfig, source: _Source) -> RunConfig:
    """Returns the settings of the record that the flags name or whose checkpoint they evaluate, else the recipe's."""
    workdir, evaluates = source.workdir or recipe.workdir, source.eval_only and not source.init
    if source.config is not None:
        path = source_path("config", source.config)
        return default_settings(path, recipe, workdir=workdir, evaluates=evaluates)
    if not evaluates or not (path := source_path("workdir", workdir) / CONFIG).is_file():
        return recipe
    try:
        return default_settings(path, recipe, workdir=workdir, evaluates=True)
    except InputError as error:
        raise InputError(f"{error}; remove it to evaluate with a recipe and flags") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs and returns the exit code: 0, or the one that `docs/training.md` names.

    The arguments are the command line's where none are given.

    With several processes it does not return where another one is lost: see `train.distributed.EXIT_LOST_PROCESS`.
    """
    code = EXIT_FAILED  # of an exception that nothing below expects, which ends in a traceback
    try:
        with lasting_output():
            code = _run(sys.argv[1:] if arguments is None else arguments)
    finally:
        if code:
            expect_exit(code)
    return code


@command_line
def _run(arguments: Sequence[str]) -> int:
    code = 0
    try:
        config = parse(arguments)
        check_installed(*TRAINING, purpose="training", extra="train")
        from .loop import run  # late, so that --help does not wait for the data and checkpoint libraries

        final = run(config)
    except IncompleteError as error:
        say(f"error: {error}")
        final, code = error.final, EXIT_FAILED
    except DivergedError as error:
        say(f"error: {error}")
        return EXIT_DIVERGED
    except PreemptedError as error:
        say(str(error))
        return EXIT_PREEMPTED if error.signum == signal.SIGTERM else 128 + error.signum
    except InputError:
        raise
    except Exception as error:
        if jax.process_count() > 1 and lost_connection(error):
            exit_lost_process(one_line(error))
        raise
    if jax.process_index() == 0:
        print("final: " + json.dumps(final))
    return code


if __name__ == "__main__":
    sys.exit(main())
