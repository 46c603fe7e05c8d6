"""The flags of all commands: values out of range, misspelled names, and what needs no run."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

import pytest

import port_weights
import train.benchmark.aot
import train.benchmark.input_pipeline
import train.benchmark.roofline
import train.benchmark.speed
import train.main
import train.plot
import train.prepare
import twins_jax
from train.config import ModelConfig
from train.flags import ALIASES, read_flags
from train.main import parse
from train.recipes import RECIPES, digits
from train.tasks.classification.config import ClassificationOptimConfig
from twins_jax import InputError

Command = Callable[[list[str]], int]
COMMANDS: dict[str, Command] = {
    "main": train.main.main,
    "benchmark": train.benchmark.speed.main,
    "roofline": train.benchmark.roofline.main,
    "aot": train.benchmark.aot.main,
    "input_pipeline": train.benchmark.input_pipeline.main,
    "prepare": train.prepare.main,
    "plot": train.plot.main,
    "port_weights": port_weights.main,
}
NAN, INF = float("nan"), float("inf")
WRONG: dict[Any, tuple[Any, ...]] = {
    # By the type of a field: values that are of another type or beyond any range.
    int: (None, "3", "", True, 1.0, NAN, -1, 2**31, 10**30, [], b"3"),
    float: (None, "0.5", "", True, NAN, -1.0, -INF, 10**400, [], ()),
    str: (None, 3, True, b"a", "a\0b", []),
    bool: (None, 0, 1, "True", 1.0, []),
    tuple: (None, 0.5, "ab", (0.5,), (0.1, 0.2, 0.3), ("0.1", "0.2"), (None, None), (NAN, NAN), (-1.0, -1.0)),
    Literal: (None, "", "x", 0, True, []),
    int | None: ("3", "", True, 1.0, 0, -1, 2**31, 10**30),
    dict: (None, 3, "x", [], {}),
}


def fields(config: Any, prefix: str = "") -> Iterator[tuple[Any, str, Any]]:
    """Each field of a config and of those in it: the config, the field's name with its prefix, and its type."""
    hints = get_type_hints(type(config))
    for name in (field.name for field in dataclasses.fields(config)):
        value, hint = getattr(config, name), hints[name]
        yield config, prefix + name, get_origin(hint) if get_origin(hint) in (tuple, Literal) else hint
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{prefix}{name}.")


FIELDS = list(fields(digits()))
MODEL = get_type_hints(ModelConfig)


@pytest.mark.parametrize(("config", "name", "kind"), FIELDS, ids=lambda value: value if isinstance(value, str) else "")
def test_wrong_values_in_python(config: Any, name: str, kind: Any) -> None:
    for value in WRONG[dict if kind is ModelConfig else kind] if not dataclasses.is_dataclass(kind) else WRONG[dict]:
        with pytest.raises(InputError, match=rf"^{re.escape(name)}[=.].*: must be ") as caught:
            dataclasses.replace(config, **{name.rpartition(".")[2]: value})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", MODEL)
def test_wrong_options_of_the_model_in_python(name: str) -> None:
    kind = get_origin(MODEL[name]) or MODEL[name]
    for value in WRONG.get(kind, (None, "x", 3, "int32")):
        with pytest.raises(InputError, match=rf"^model\.{name}=.*: must be ") as caught:
            dataclasses.replace(digits(), model=digits().model | {name: value})
        assert "\n" not in str(caught.value)


TEXT: dict[Any, str] = {
    int: "99999999999999999999",
    int | None: "99999999999999999999",
    float: "nan",
    bool: "x",
    tuple: "1e400",
    Literal: "x",
}
FLAGS = [(name, TEXT[kind]) for _, name, kind in FIELDS if kind in TEXT]
FLAGS += [(f"model.{name}", TEXT.get(get_origin(kind) or kind, "x")) for name, kind in MODEL.items()]


@pytest.mark.parametrize(("name", "text"), FLAGS, ids=[name for name, _ in FLAGS])
def test_wrong_values_of_flags(name: str, text: str) -> None:
    count = 2 if text == "1e400" else 1
    with pytest.raises(InputError, match=r"must be|invalid choice|belongs to no flag") as caught:
        parse([f"--{name}", *[text] * count])
    # "multi_label" is refused for the digits before "x" is.
    assert (text if text == "x" and name not in ("model.name", "data.multi_label") else name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "arguments", "named"),
    [
        *(
            (command, [flag, *values], f"{flag}=")
            for command in ("benchmark", "roofline")
            for flag, values in (
                ("--batch", ["0"]),
                ("--batch", ["8", "99999999999999999999"]),
                ("--size", ["31"]),
                ("--size", ["99999999999999999999"]),
                ("--seconds", ["nan"]),
                ("--seconds", ["-1"]),
                ("--seconds", ["0"]),
                ("--seconds", ["inf"]),
                ("--variants", ["resnet"]),
            )
        ),
        ("benchmark", ["--rounds", "1"], "--rounds="),
        ("benchmark", ["--rounds", "99999999999999999999"], "--rounds="),
        ("benchmark", ["--rounds", "x"], "--rounds"),
        ("benchmark", ["--batch"], "--batch"),
        ("aot", ["--classes", "0"], "classes="),
        ("aot", ["--classes", "99999999999999999999"], "classes="),
        ("aot", ["--batch_size", "99999999999999999999"], "batch_size="),
        ("input_pipeline", ["--passes", "1"], "passes="),
        ("input_pipeline", ["--passes", "99999999999999999999"], "passes="),
        ("prepare", ["cifar10", "--tars", "."], "cifar10"),
        ("prepare", ["imagenet2012"], "--tars"),
        ("plot", ["metrics.jsonl"], "The file to write"),
        ("plot", ["metrics.jsonl", "a.svg", "b.svg"], "b.svg"),
        ("port_weights", ["a"], "DST is missing"),
        ("port_weights", ["a", "b", "c"], "'c'"),
        ("port_weights", ["a", "b", "--report", ""], "--report is of --verify"),
        ("port_weights", ["a", ""], "DST=''"),
        ("main", ["--batch_size", "1048577"], "batch_size=1048577"),
        ("main", ["--eval_batch_size", "2147483647"], "eval_batch_size=2147483647"),
        ("main", ["--workdir"], "error: Missing value for argument '--workdir'. Expected 1 values.\n"),
        ("main", ["digit"], "did you mean digits?"),
    ],
)
def test_wrong_values_of_other_commands(
    command: str, arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(COMMANDS[command], arguments, capsys)
    assert named in error


def refused(command: Command, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error, with which the command ends with code 2."""
    try:
        code: Any = command(arguments)
    except SystemExit as end:  # argparse's
        code = end.code
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert re.fullmatch(r"error: .+\n", captured.err), captured.err
    return captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_version(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        COMMANDS[command](["--version"])
    assert not end.value.code
    assert capsys.readouterr() == (f"twins_jax {twins_jax.__version__}\n", "")


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--optim.lr", "--optim.learning_rate"),
        ("--lr", "--optim.learning_rate"),
        ("--lr=0.1", "--optim.learning_rate"),
        ("--learning-rate", "--optim.learning_rate"),
        ("--optim.learning_rat", "--optim.learning_rate"),
        ("--bs", "--batch_size"),
        ("-b", "--batch_size"),
        ("--batchsize", "--batch_size"),
        ("--Batch-Siz", "--batch_size"),
        ("--model", "--model.name"),
        ("--data_dir", "--data.dir"),
        ("--epoch", "--epochs"),
        ("--dtype", "--model.dtype"),
        ("--output_dir", "--workdir"),
        ("--resume", "--init"),
    ],
)
def test_unknown_flag_suggests_the_nearest(flag: str, meant: str) -> None:
    with pytest.raises(InputError) as caught:
        parse([flag, "1"])
    assert re.match(rf"unknown flag {re.escape(repr(flag))}; did you mean {meant}( or .*)?\?$", str(caught.value))


@pytest.mark.parametrize(
    ("command", "arguments", "error"),
    [
        ("main", ["--quite_another"], "unknown flag '--quite_another'; --help lists all"),
        ("aot", ["--topologie", "v5e:2x2"], "unknown flag '--topologie'; did you mean --topology?"),
        ("input_pipeline", ["--pass", "3"], "unknown flag '--pass'; did you mean --passes?"),
        ("benchmark", ["--variant_", "a"], "unknown flag '--variant_'; did you mean --variants?"),
        ("roofline", ["--dtyp_", "a"], "unknown flag '--dtyp_'; did you mean --dtype?"),
        ("prepare", ["imagenet2012", "--tars", ".", "--data-dr", "."], "'--data-dr'; did you mean --data_dir?"),
        ("port_weights", ["a", "b", "--modle", "c"], "unknown flag '--modle'; did you mean --model?"),
    ],
)
def test_unknown_flag_of_each_command(
    command: str, arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(COMMANDS[command], arguments, capsys).endswith(f"{error}\n")


def test_aliases_are_of_flags() -> None:
    names = [name for _, name, _ in FIELDS] + [f"model.{name}" for name in MODEL]
    assert [end for end in ALIASES.values() if not any(f".{name}".endswith(f".{end}") for name in names)] == []


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_errors_of_values_are_one_line(encoding: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Arguments:
        """Of a command."""

        count: int = 0

    with (tmp_path / "out").open("w", encoding=encoding) as out, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)  # tyro draws its boxes in its encoding
        with pytest.raises(InputError, match=r"^--count: invalid literal for int\(\) with base 10: 'many'$"):
            read_flags(Arguments, ["--count", "many"], prog="command")
    del monkeypatch


@pytest.mark.parametrize(
    ("config", "examples"),
    [({"epochs": 1e300}, 1000), ({"epochs": 1e300}, 2**40), ({"epochs": 3e9, "batch_size": 1}, 1)],
)
def test_more_steps_than_their_counter_holds(config: dict[str, Any], examples: int) -> None:
    run = dataclasses.replace(digits(), **config)
    with pytest.raises(InputError, match=r"^epochs=.*: must be fewer: .* steps are more than 2147483647"):
        run.total_steps(examples)
    assert dataclasses.replace(run, steps=2**31 - 1).total_steps(examples) == 2**31 - 1


def test_a_warm_up_of_any_length_ends_before_the_run() -> None:
    optim = ClassificationOptimConfig(warmup_epochs=1e308)
    assert optim.warmup_steps(batch_size=1, total_steps=7, train_examples=1000) == 6


def test_defaults_of_all_recipes_are_of_their_types() -> None:
    assert all(dataclasses.replace(recipe()) == recipe() for recipe in RECIPES.values())
