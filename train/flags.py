"""Reads the command line into a dataclass, whose fields are the flags."""

import contextlib
import io
import itertools
import re
import sys
from collections.abc import Sequence
from typing import Any

import tyro
from jax.typing import DTypeLike
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from twins_jax.command_line import VERSION, explain_unknown
from twins_jax.errors import InputError

DTYPES = ("float32", "bfloat16")

ALIASES = {
    "arch": "model.name",
    "accum_iter": "accumulate",
    "amp": "dtype",
    "b": "batch_size",
    "bs": "batch_size",
    "checkpoint": "init",
    "clip_grad": "clip_norm",
    "cutmix": "cutmix_alpha",
    "data_dir": "data.dir",
    "data_path": "data.dir",
    "dataset": "data.source",
    "drop_path": "drop_path_rate",
    "epoch": "epochs",
    "eval": "eval_only",
    "finetune": "init",
    "img_size": "image_size",
    "input_size": "image_size",
    "j": "workers",
    "lr": "learning_rate",
    "max_steps": "steps",
    "min_lr": "min_learning_rate",
    "mixup": "mixup_alpha",
    "model": "model.name",
    "num_workers": "workers",
    "out": "workdir",
    "output": "workdir",
    "output_dir": "workdir",
    "pretrained": "init",
    "reprob": "erase_probability",
    "resume": "init",
    "smoothing": "label_smoothing",
    "warmup_lr": "warmup_learning_rate",
    "wd": "weight_decay",
    "weights": "init",
}
"""Names that timm, DeiT and other programs give to flags; here: the ends of the flags' names."""

FLAGS = ConstructorRegistry()
"""Reads flags of types that tyro does not know: dtypes, by their names."""


@FLAGS.primitive_rule
def _dtype(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[str] | None:
    wanted: Any = info.type
    if wanted != DTypeLike:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(DTYPES)}}}",
        choices=DTYPES,
        instance_from_str=lambda arguments: arguments[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    )


def read_flags(
    kind: Any,
    arguments: Sequence[str],
    *,
    prog: str,
    description: str | None = None,
    default: Any = tyro.MISSING_NONPROP,
) -> Any:
    """Reads a command line with tyro; exits with code 0 after `--help` and `--version`.

    Args:
        kind: the dataclass to make.
        arguments: of the command line.
        prog: the command, for `--help`.
        description: of the command, for `--help`; that of `kind` if None.
        default: the values before any flag, where `kind` has none of its own.

    Returns:
        An instance of `kind`.

    Raises:
        InputError: a flag is unknown, or a value is missing, of another type or not allowed.
    """
    if "--version" in arguments:
        sys.stdout.write(f"{VERSION}\n")
        raise SystemExit(0)
    options = {"prog": prog, "description": description, "default": default}
    config, unknown = read_known_flags(kind, arguments, **options)
    if unknown:
        with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
            read_known_flags(kind, ["--help"], **options)
        flags = dict.fromkeys(re.findall(r"(?<![\w-])--[a-z]\w*(?:\.\w+)*", printed.getvalue()))
        raise InputError(explain_unknown(unknown[0], flags, ALIASES))
    return config


def read_known_flags(kind: Any, arguments: Sequence[str], **options: Any) -> tuple[Any, list[str]]:
    """Reads the flags that a dataclass has, as `read_flags` does, and returns the other arguments beside it.

    Args:
        kind: the dataclass to make.
        arguments: of the command line.
        **options: of `tyro.cli`.

    Raises:
        InputError: a value is missing, of another type or not allowed.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            config, unknown = tyro.cli(
                kind, args=list(arguments), use_underscores=True, registry=FLAGS, return_unknown_args=True, **options
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise _refusal(end) or InputError(_unboxed(printed.getvalue())) from end
    return config, unknown


def _refusal(end: BaseException) -> InputError | None:
    """Returns the error of the settings' own behind tyro's exit, which prints it in a box."""
    error = end.__context__
    while error:
        if isinstance(error, InputError):
            return error
        error = error.__context__
    return None


def _unboxed(text: str) -> str:
    """Returns the first paragraph of an error that tyro prints in a box, as one line."""
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).strip("│ ") for line in text.splitlines()]
    start = next((number + 1 for number, line in enumerate(lines) if line[:1] == "╭" or _is_rule(line)), 0)
    paragraph = itertools.takewhile(lambda line: not _is_rule(line), itertools.dropwhile(_is_rule, lines[start:]))
    return " ".join(paragraph).removeprefix("Error parsing ")


def _is_rule(line: str) -> bool:
    return not line.strip("─-╰╯ ")
