"""The documents: each command and example works, or is listed as one that cannot be run here; each name exists."""

import contextlib
import dataclasses
import functools
import importlib
import io
import json
import re
import shlex
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import pytest
from flax import nnx, traverse_util

import twins_jax
from tests.support.compilation import fast_compilation
from tests.support.models import NANO
from tests.support.pages import NOTEBOOK, PAGES, Block, Page, inline_commands, repository_files, shell_commands
from tests.support.paths import ROOT
from tests.support.stand_ins import (
    SMALL,
    make_boxes,
    make_detector,
    make_exports,
    make_images,
    make_masks,
    make_segmenter,
    make_weights,
)
from train import flags
from train.main import parse
from train.recipes import RECIPES
from twins_jax import DetectionPreprocessing, command_line, image_detector
from twins_jax.config import VARIANTS
from twins_jax.port import verify as verify_module

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = {
    name: re.sub(r"^twins_jax\.train\b", "train", entry.partition(":")[0])
    for name, entry in PYPROJECT["scripts"].items()
}
"""The modules of the console scripts."""

PROGRAMS = ("python", "python3", "pip", "pytest", "mkdocs", *SCRIPTS)
FILES = repository_files()

HERE = "run here, on stand-ins; of training what comes before its first step"
CI = "run by .ci/run"
IMAGENET = "needs ImageNet; tests/train/test_recipes.py checks the recipe, tests/train/test_run.py runs another"
ELSEWHERE = "installs into the active environment; tests/scripts/wheel.sh has one of its own"
QUIET = "measures for minutes on an idle machine; tests/train/benchmark/test_speed.py runs less"

COMMANDS = {
    # What becomes of each command in a block. * stands for anything.
    "python3 -m venv .venv": CI,
    "pip install -e .[train]": CI,
    "pip install -e .[test]": CI,
    "pip install -e .[docs]": CI,
    "pip install .[hub]": ELSEWHERE,
    "pip install -e .[train,hf]": ELSEWHERE,
    "pip install -e .[train,prepare]": "installs TensorFlow",
    "pytest -n 2 --dist loadfile": CI,
    "mkdocs serve": "serves the site until it is stopped; .ci/run builds it",
    "python -m train.main": CI,
    "python -m train.main [RECIPE] [--field value ...]": "is the pattern of a command",
    "python -m train.main RECIPE --help": HERE,
    "python -m train.main RECIPE --help_all": HERE,
    "python -m train.main finetune_folder * --data.source hf:*": "needs the network; tests/train/data makes sets",
    "python -m train.main finetune_folder *": HERE,
    "python -m train.main segment_folder --data.dir DIR *": "needs the photographs, and 17 minutes",
    "python -m train.main segment_folder *": HERE,
    "python -m train.main ade20k_upernet_svt_small *": HERE,
    "python -m train.main detect_folder --data.dir DIR *": "needs the images, and 20 minutes",
    "python -m train.main detect_folder *": HERE,
    "python -m train.main coco_mask_rcnn_svt_small_1x *": HERE,
    "python -m train.main --eval_only --workdir RUN --report": "needs a run; tests/train/test_run_weights.py has one",
    "python -m train.main imagenet_svt_small *": IMAGENET,
    "python -m train.main cifar10 --data.dir DIR": "needs CIFAR-10, and 7 minutes",
    "python -m train.main digits --data.image_size 112 *": "takes minutes; tests/train/test_run.py runs another",
    "python examples/attention.py *": "needs the run before it; tests/examples/test_examples.py runs the script",
    "python -m train.main digits --fsdp 4": "eight devices; tests/train/test_distributed_devices.py has them",
    "python -m train.main digits --distributed.coordinator *": "run by tests/train/test_distributed_processes.py",
    "python -m train.prepare imagenet2012 *": "needs ImageNet's archives; tests/train/test_prepare.py has small ones",
    "python -m train.plot runs/segment_folder/metrics.jsonl docs/results/dubai_aerial.svg": "needs the run before it",
    "python tests/scripts/color_baseline.py DIR": "needs the photographs",
    "python -m train.plot runs/detect_folder/metrics.jsonl *": "needs the run before it",
    "python -m train.plot runs/cifar10/metrics.jsonl docs/results/cifar10.svg": "needs the run before it",
    "python -m train.benchmark --against timm *": QUIET,
    "python -m train.benchmark --variants twins_svt_small --mode train *": QUIET,
    "python -m train.benchmark --device cuda *": "needs a GPU",
    "python -m train.benchmark.roofline --device h100 *": "needs a GPU",
    "python -m train.main coco_retinanet_svt_small_1x --data.source folder *": QUIET,
    "python -m train.benchmark.aot imagenet_*": "compiles for minutes; tests/train/benchmark/test_aot.py does less",
    "python -m train.benchmark.aot coco_*": "compiles for minutes; tests/train/benchmark/test_aot.py does less",
    "python port_weights.py hf-hub:*": "needs the network; tests/port/test_hub.py has a server of its own",
    "python port_weights.py *": HERE,
    "twins-predict *": HERE,
    "twins-export *": "takes a while; tests/export/test_command.py exports small models",
    "twins-train *": "run by .ci/run in the notebook",
}

FOREIGN_FLAGS = {
    "--signal": "srun's",
    "--shm-size": "Docker's",
    "--at_once": "of two scripts in tests/scripts",
    "--lr": "named as one that does not exist",
    "--bs": "named as one that does not exist",
}

PRELUDES = {
    # What an example takes for granted.
    "docs/porting.md": "from twins_jax.port.rules import CONV, Modules",
}


@functools.cache
def commands(block: Block) -> list[list[str]]:
    """The commands of a block, each as its words."""
    if block.language != "bash":
        return []
    with tempfile.TemporaryDirectory() as folder:
        return shell_commands(block.text, PROGRAMS, Path(folder))


def commands_of(page: Page) -> list[list[str]]:
    return [command for block in page.blocks for command in commands(block)]


def row(command: list[str]) -> str | None:
    """The first pattern of the table that fits a command."""
    text = " ".join(command)
    fits = (key for key in COMMANDS if re.fullmatch(re.escape(key).replace(r"\*", ".*"), text))
    return next(fits, None)


def module_of(command: list[str]) -> tuple[str, list[str]] | None:
    """The module of this project whose `main` a command calls, and the arguments; None if it calls none."""
    match command:
        case ["python", "-m", module, *arguments] if module.split(".")[0] in ("train", "twins_jax"):
            is_package = (ROOT / module.replace(".", "/")).is_dir()
            return (f"{module}.__main__" if is_package else module), arguments
        case ["python", "port_weights.py", *arguments]:
            return "port_weights", arguments
        case [program, *arguments] if program in SCRIPTS:
            return SCRIPTS[program], arguments
    return None


class Parsed(BaseException):
    """Ends a command once its arguments are read."""


@pytest.fixture
def only_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in ((command_line.Parser, "parse"), (flags, "read_flags")):
        original = getattr(owner, name)

        def read(*args: Any, original: Any = original, **kwargs: Any) -> None:
            original(*args, **kwargs)
            raise Parsed

        monkeypatch.setattr(owner, name, read)


every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@every_page
def test_blocks_are_of_a_known_language(page: Page) -> None:
    assert {block.language for block in page.blocks} <= {"bash", "python", ""}


def test_the_table_decides_on_each_command_of_a_block_and_on_no_other() -> None:
    found = [command for page in PAGES for command in commands_of(page)]
    assert [shlex.join(command) for command in found if row(command) is None] == []
    assert set(COMMANDS) - {row(command) for command in found} == set()
    files = re.findall(r"tests/[\w/]+\.py|\.ci/run", " ".join(COMMANDS.values()))
    assert [file for file in files if file not in FILES] == []


@pytest.mark.usefixtures("only_parse")
@every_page
def test_arguments_of_commands_are_right(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    alike = set()  # but for the values of flags: the rounds of a loop
    for command in [*commands_of(page), *inline_commands(page.words)]:
        called = module_of(command)
        if called is None or any(word.startswith("[") or word == "..." for word in command):
            continue
        name, arguments = called
        kind = (name, arguments[:1], [word for word in arguments if word.startswith("--")])
        if str(kind) in alike:
            continue
        alike.add(str(kind))
        main = parse if name == "train.main" else importlib.import_module(name).main
        arguments = ["digits" if word == "RECIPE" else word for word in arguments]
        with pytest.raises((Parsed, SystemExit)) as caught:
            pytest.fail(f"{shlex.join(command)}: {main(arguments)}: {capsys.readouterr().err}")
        assert isinstance(caught.value, Parsed) or caught.value.code == 0, capsys.readouterr().err


def test_outputs_of_the_notebook_are_small_and_of_one_execution() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 100_000
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert [out for cell in cells for out in cell["outputs"] if out["output_type"] == "error"] == []


@functools.cache
def known_flags() -> frozenset[str]:
    """All flags of training, and of the other commands those that their help shows."""
    recipes = (dataclasses.asdict(recipe()) for recipe in RECIPES.values())
    fields = {f"--{field}" for recipe in recipes for field in traverse_util.flatten_dict(recipe, sep=".")}
    sources = [file for file in FILES if re.fullmatch(r"(train|twins_jax)/.*\.py|port_weights\.py", file)]
    programs = [file for file in sources if '\nif __name__ == "__main__":' in (ROOT / file).read_text(encoding="utf-8")]
    printed = io.StringIO()
    for file in programs:
        main = importlib.import_module(file.removesuffix(".py").replace("/", ".")).main
        with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
            main(["--help"])
    shown = re.findall(r"(?<![\w-])--[a-z]\w*(?:\.\w+)*", printed.getvalue())
    return frozenset([*fields, *shown, "--config"])


@every_page
def test_flags_exist(page: Page) -> None:
    found = {word.partition("=")[0] for words in page.words if words.startswith("--") for word in words.split()}
    unknown = {flag for flag in found if flag.startswith("--")} - known_flags() - FOREIGN_FLAGS.keys()
    assert unknown == set()


@every_page
def test_extras_exist(page: Page) -> None:
    texts = [*page.words, *(block.text for block in page.blocks)]
    found = {
        name
        for text in texts
        for extras in re.findall(r"pip install .*\[([\w,-]+)\]", text)
        for name in extras.split(",")
    }
    assert found - PYPROJECT["optional-dependencies"].keys() == set()


@every_page
def test_links_lead_somewhere(page: Page) -> None:
    anchors = {other.path: other.anchors for other in PAGES}
    for link in page.links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.path.parent / path).resolve() if path else page.path
        name = target.relative_to(ROOT).as_posix()
        assert {name, f"{name}/"} & FILES, link
        assert not anchor or anchor in anchors[target], link
        # The site holds the pages of docs/ alone.
        assert ROOT / "docs" not in page.path.parents or ROOT / "docs" in target.parents, link


def test_every_page_can_be_reached() -> None:
    targets = {(page.path.parent / link.partition("#")[0]).resolve() for page in PAGES for link in page.links}
    starts = {ROOT / "README.md", ROOT / "docs" / "index.md"}
    assert [page.name for page in PAGES if page.path not in targets | starts] == []


@every_page
def test_files_between_backticks_exist(page: Page) -> None:
    tops = {file.partition("/")[0] for file in FILES if "/" in file}
    for word in page.words:
        if not re.fullmatch(r"[a-z0-9_.-]+(/[a-z0-9_.-]+)*/?", word):
            continue
        if re.search(r"\.(py|md|sh|toml|yml|cff)$", word):
            assert any(f"/{file}".endswith(f"/{word}") for file in FILES), word
        elif "/" in word and word.partition("/")[0] in tops:
            assert word in FILES, word


@every_page
def test_names_between_backticks_exist(page: Page) -> None:
    """As a reader reaches them: an attribute, or else a module to import."""
    for word in page.words:
        if not (found := re.match(r"(?:twins_jax|train)(?:\.[A-Za-z]\w*)+", word)) or "*" in word:
            continue
        here: Any = importlib.import_module(found[0].partition(".")[0])
        for part in found[0].split(".")[1:]:
            if not hasattr(here, part):
                assert isinstance(here, ModuleType), word
                importlib.import_module(f"{here.__name__}.{part}")
            here = getattr(here, part)


def test_documents_that_the_code_names_exist() -> None:
    sources = [file for file in FILES if file.endswith((".py", ".sh", ".toml", ".yml")) or file == ".ci/run"]
    texts = [(ROOT / file).read_text(encoding="utf-8") for file in sources]
    found = {name for text in texts for name in re.findall(r"docs/[\w/-]+\.(?:md|svg|ipynb)", text)}
    assert found - FILES == set()


def test_the_page_of_the_api_has_every_public_name() -> None:
    shown = re.findall(r"^::: twins_jax\.(?:\w+\.)*(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert set(twins_jax.__all__) - {"__version__"} - set(shown) == set()


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of what documents name; meanwhile variants are small."""
    folder = tmp_path_factory.mktemp("stand_ins")
    with pytest.MonkeyPatch.context() as patch, fast_compilation(), jax.numpy_dtype_promotion("standard"):
        patch.setitem(VARIANTS, "nano", NANO)
        patch.setitem(VARIANTS, "twins_svt_small", SMALL)
        patch.setattr(image_detector, "DetectionPreprocessing", functools.partial(DetectionPreprocessing, 64, 96))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        weights = tmp_path_factory.mktemp("weights")
        make_weights(folder, weights)
        make_segmenter(folder, weights)
        make_detector(folder, weights)
        make_images(folder)
        make_masks(folder)
        make_boxes(folder)
        make_exports(folder)
        yield folder


def run(command: list[str]) -> None:
    name, arguments = module_of(command) or ("", [])
    arguments = ["digits" if word == "RECIPE" else word for word in arguments]
    code: Any = 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as printed:
        if name == "train.main" and not any(word.startswith("--help") for word in arguments):
            config = parse([*arguments, "--model.name", "nano", "--data.workers", "0"])
            task = config.make_task()
            next(iter(task.batches("train", 2)))
            task.create_model(nnx.Rngs(0))
        else:
            try:
                code = importlib.import_module(name).main(arguments)
            except SystemExit as end:
                code = end.code
    assert code == 0, f"{shlex.join(command)}: {printed.getvalue()}"


def is_run(page: Page) -> bool:
    is_here = (COMMANDS.get(row(command) or "") == HERE for command in commands_of(page))
    return page.path != NOTEBOOK and (any(is_here) or any(block.language == "python" for block in page.blocks))


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("page", [page for page in PAGES if is_run(page)], ids=lambda page: page.name)
def test_blocks_run(page: Page, stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, in one folder and one interpreter."""
    one = (verify_module.Input(1, 64, 96),)
    monkeypatch.setattr(verify_module, "verify", functools.partial(verify_module.verify, inputs=one))
    shutil.copytree(stand_ins, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    exec(PRELUDES.get(page.name, ""), namespace)
    for block in page.blocks:
        if block.language == "python":
            exec(compile(block.text, page.name, "exec"), namespace)
        for command in commands(block):
            if COMMANDS.get(row(command) or "") == HERE:
                run(command)
