"""The parts that all command lines share: `--version`, errors on one line, and the flag that a misspelled one means."""

import argparse
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

from twins_jax import __version__
from twins_jax.errors import did_you_mean

VERSION = f"twins_jax {__version__}"

NO_ALIASES: Mapping[str, str] = MappingProxyType({})


class Parser(argparse.ArgumentParser):
    """A parser with `--version` that reports errors, flags that it does not know included, on one line."""

    def __init__(self, description: str, *, prog: str | None = None, epilog: str | None = None) -> None:
        super().__init__(prog, description=description, epilog=epilog)
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        self.add_argument("--version", action="version", version=VERSION)

    def add_choice_of_weights(self, source: str) -> None:
        """Adds `--ema`, `--prefix` and `--head`, which choose among the weights of a file; see `choice_of_weights`.

        Args:
            source: the argument that names the file.
        """
        self.add_argument("--ema", action="store_true", help="take the moving average in a training checkpoint")
        prefix = f"what names begin with (default: found), or a key in {source}"
        self.add_argument("--prefix", metavar="TEXT", help=prefix)
        head = f"the head's name in {source} (default: head); none: leave it out"
        self.add_argument("--head", metavar="NAME", help=head)

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Parses arguments, those of the command line if None; exits with code 2 where they are wrong."""
        parsed, unknown = self.parse_known_args(arguments)
        if unknown:
            self.error(explain_unknown(unknown[0], [name for name in self._option_string_actions if name[:2] == "--"]))
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def choice_of_weights(parsed: argparse.Namespace) -> dict[str, Any]:
    """Returns the values of `Parser.add_choice_of_weights` as keyword arguments of all functions that read weights."""
    return {"ema": parsed.ema, "prefix": parsed.prefix, "head": parsed.head}


def explain_unknown(token: str, flags: Collection[str], aliases: Mapping[str, str] = NO_ALIASES) -> str:
    """Explains the first argument that a command does not take.

    Args:
        token: the argument: a flag, perhaps with "=value", or a value of none.
        flags: all that the command knows, with their "--".
        aliases: by the names without "--" that flags have in other programs: the last part of their names here.
    """
    if not token.startswith("-"):
        return f"{token!r} belongs to no flag (a switch takes no value: --NAME turns it on)"
    name = token.partition("=")[0].lstrip("-").lower().replace("-", "_")
    end = name.rpartition(".")[2]
    for wanted in (aliases.get(name), aliases.get(end), name, end):
        found = [flag for flag in flags if wanted and f".{flag[2:]}".endswith(f".{wanted}")]
        if found:
            return f"unknown flag {token!r}; did you mean {' or '.join(found)}?"
    similar = did_you_mean(name, {flag[2:]: flag for flag in flags}, most=2)
    similar = similar or did_you_mean(end, {flag.rpartition(".")[2]: flag for flag in flags}, most=2)
    return f"unknown flag {token!r}{similar or '; --help lists all'}"
