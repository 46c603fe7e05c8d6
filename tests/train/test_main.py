import contextlib
import dataclasses
import io
import itertools
import re
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flax import traverse_util

import train.benchmark.aot
import train.loop
from train.config import RunConfig
from train.errors import DivergedError, IncompleteError, PreemptedError
from train.main import main, parse
from train.recipes import RECIPES, digits
from twins_jax import InputError


def flatten(config: RunConfig) -> dict[str, Any]:
    """Every field by its flag."""
    return traverse_util.flatten_dict(dataclasses.asdict(config), sep=".")


def test_no_arguments_are_the_embedded_default() -> None:
    assert parse([]) == digits()


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_by_name(name: str) -> None:
    assert parse([name]) == RECIPES[name]()


def test_overrides() -> None:
    overrides = {
        "workdir": "somewhere",
        "seed": 7,
        "steps": 3,
        "batch_size": 24,
        "eval_only": True,
        "init": "a.safetensors",
        "data.source": "folder",
        "data.dir": "b",
        "data.crop_scale": (0.3, 0.9),
        "checkpoint.every_steps": 11,
        "optim.learning_rate": 2e-3,
        "optim.accumulate": 4,
        "model.name": "twins_pcpvt_small",
        "model.remat": True,
        "model.dtype": "bfloat16",
        "mix.cutmix_alpha": 1.0,
        "distributed.mode": "off",
    }
    arguments = []
    for name, value in overrides.items():
        words = [] if value is True else map(str, value) if isinstance(value, tuple) else [str(value)]
        arguments += [f"--{name}", *words]
    expected = flatten(RECIPES["imagenet_svt_small"]()) | overrides
    assert flatten(parse(["imagenet_svt_small", *arguments])) == expected


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_of_all_names_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, "--help_all")
    assert [field for field in flatten(digits()) if f"--{field}" not in text] == []


def expanded(pattern: str) -> list[str]:
    """A name with choices in braces, as shells expand it."""
    parts = [part.split(",") for part in re.split("[{}]", pattern)]
    return ["".join(choices) for choices in itertools.product(*parts)]


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_a_line_for_each_flag_in_common_use(
    flag: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = help_of(capsys, "imagenet_pcpvt_large", flag, "--seed", "3")
    patterns = " ".join(text.split("recipes: ")[1].split("\n  --config")[0].split()).split(", ")
    assert [recipe for pattern in patterns for recipe in expanded(pattern)] == list(RECIPES)
    assert "imagenet_pcpvt_large: Twins-PCPVT-L on ImageNet-1K; published top-1 83.1" in text
    groups = re.findall(r"\n\n(\w+)\n  --", text)
    assert groups == ["run", "model", "data", "optim", "checkpoint", "mix"]
    config = RECIPES["imagenet_pcpvt_large"]()
    fields = flatten(config)
    assert set(config.advanced) < fields.keys()
    shown = {name.split()[0]: name for name in re.findall(r"^  --(.*)$", text.split("\nrun\n")[1], re.MULTILINE)}
    assert shown.keys() == fields.keys() - set(config.advanced)
    assert list(shown)[:2] == ["workdir", "init"]
    for flag, begin in (
        ("model.name", "model.name twins_pcpvt_large"),
        ("data.crop_scale", "data.crop_scale 0.08 1.0      Training: smallest and largest share of the image that is"),
        ("init", "init ''                       Checkpoint to start from"),
        ("eval_only", "eval_only                     Evaluate `init`, or else"),
        ("optim.learning_rate", "optim.learning_rate 0.0005    Peak learning rate for a batch of 512"),
    ):
        assert shown[flag].startswith(begin)
    assert all(line.split(None, 2)[-1] for line in shown.values())  # each has a text
    assert max(map(len, text.splitlines()[6:])) <= 120
    assert len(text.splitlines()) < 70


def test_help_of_a_command_around_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.benchmark.aot.main(["finetune_384", "--help"])
    text = capsys.readouterr().out
    assert "\n  --topology v5e:2x2 " in text
    assert "\n  --data.image_size 384 " in text


def test_help_shows_the_recipes_own_values(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, "imagenet_pcpvt_large", "--help_all")
    assert "published top-1 83.1" in text
    assert "(default: twins_pcpvt_large)" in " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--batch_sise", "8"], "--batch_sise"),
        (["--model.nome", "x"], "--model.nome"),
        (["digits", "imagenet_svt_small"], "imagenet_svt_small"),
        (["--steps", "many"], "--steps"),
        (["--batch_size", "8.5"], "--batch_size"),
        (["--model.dtype", "float16"], "--model.dtype"),
        (["--batch_size", "0"], "batch_size=0: must be an integer"),
        (["--optim.learning_rate", "-1"], "optim.learning_rate=-1.0: must be"),
        (["--data.flip", "2"], "data.flip=2.0: must be"),
        (["--data.image_size", "31"], "data.image_size=31: must be an integer from 32"),
        (["--mix.mixup_alpha", "-1"], "mix.mixup_alpha=-1.0: must be"),
        (["--model.name", "twins"], "'twins'"),
    ],
)
def test_bad_field_or_value(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert named in output.err
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_unknown_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["imagenet"]) == 2
    error = capsys.readouterr().err
    similar = "did you mean imagenet_svt_base or imagenet_svt_small?"
    assert error == f"error: recipe='imagenet': must be one of {', '.join(RECIPES)}; {similar}\n"


@pytest.mark.parametrize(
    ("error", "code", "prefix"),
    [
        (InputError("data: bad"), 2, "error: data: bad\n"),
        (DivergedError("step 3: loss nan"), 3, "error: step 3: loss nan\n"),
        (PreemptedError("SIGTERM: saved step 5"), 75, "SIGTERM: saved step 5\n"),
        (PreemptedError("SIGINT: saved step 5", signal.SIGINT), 130, "SIGINT: saved step 5\n"),
        (PreemptedError("SIGHUP: saved step 5", signal.SIGHUP), 129, "SIGHUP: saved step 5\n"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT\n"),
        (OSError(28, "No space left on device", "a/b"), 2, "error: a/b: No space left on device\n"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, prefix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: RunConfig) -> dict[str, Any]:  # noqa: ARG001 - run's
        raise error

    monkeypatch.setattr(train.loop, "run", fail)
    assert main([]) == code
    assert capsys.readouterr() == ("", prefix)


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.loop, "run", lambda config: {}[config.workdir])
    with pytest.raises(KeyError):
        main([])


def test_success(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(train.loop, "run", lambda config: {"top1": 0.5, "step": config.steps})
    assert main(["--steps", "4"]) == 0
    assert capsys.readouterr().out == 'final: {"top1": 0.5, "step": 4}\n'


def test_a_result_is_printed_though_something_after_it_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: RunConfig) -> dict[str, Any]:  # noqa: ARG001 - run's
        raise IncompleteError("report: No space left on device", {"top1": 0.5})

    monkeypatch.setattr(train.loop, "run", fail)
    assert main([]) == 1
    assert capsys.readouterr() == ('final: {"top1": 0.5}\n', "error: report: No space left on device\n")


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe", text)


@pytest.mark.filterwarnings("ignore:slow")
@pytest.mark.parametrize("make", [Full, lambda: None], ids=["broken", "closed"])
def test_output_that_nobody_reads_does_not_end_a_run(
    make: Callable[[], io.StringIO | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(config: RunConfig) -> dict[str, Any]:  # noqa: ARG001 - run's
        print("step 1")  # noqa: T201
        warnings.warn("slow", stacklevel=2)
        return {"top1": 0.5}

    monkeypatch.setattr(train.loop, "run", run)
    monkeypatch.setattr(sys, "stdout", make())
    monkeypatch.setattr(sys, "stderr", make())
    assert main([]) == 0


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: RunConfig) -> dict[str, Any]:  # noqa: ARG001 - run's
        return {"text": warnings.formatwarning("the checkpoint is damaged", UserWarning, "x.py", 1)}

    monkeypatch.setattr(train.loop, "run", run)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main([]) == 0
    assert output.getvalue() == 'final: {"text": "warning: the checkpoint is damaged\\n"}\n'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.source", "folder", "--data.dir", "{tmp}/none"], "{tmp}/none/train: no such folder"),
        (["--data.source", "folder", "--data.dir", "{tmp}"], "{tmp}/train: holds no folder"),
        (["--data.source", "nothing", "--data.dir", "{tmp}"], "data.source: nothing is not prepared in {tmp}"),
        (["--init", "{tmp}/none"], "{tmp}/none: No such file or directory"),
        (["--init", "{tmp}/garbage"], "{tmp}/garbage: neither a .safetensors file nor"),
        (
            ["--eval_only", "--workdir", "{tmp}/none"],
            "init='': must be a checkpoint for eval_only: {tmp}/none holds none",
        ),
        (["--fsdp", "3"], "fsdp=3: must be a divisor of the number of devices"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "garbage").write_bytes(b"not a checkpoint")
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    defaults = ["--workdir", str(tmp_path / "run"), "--distributed.mode", "off"]
    capsys.readouterr()
    assert main([*defaults, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message.format(tmp=tmp_path)}")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
