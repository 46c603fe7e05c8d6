"""The rules of the structure: which file may import which, and what the core of training may not name."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

CORE = ("loop", "step", "evaluate", "checkpoint", "state", "task", "experiment")
MODULES = sorted(path for folder in ("train", "twins_jax") for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """The modules of this project that a file imports, inside functions too, by absolute names."""
    package = [*path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def below(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_arrows_go_one_way(path: Path) -> None:
    name, imported = name_of(path), set(imports(path))

    def refuse(*packages: str) -> None:
        assert [module for module in imported if below(module, *packages)] == []

    if below(name, "twins_jax"):
        refuse("train")
    if below(name, "twins_jax.port"):
        refuse("twins_jax.pretrained", "twins_jax.create")
    if below(name, "twins_jax.ops"):
        layers = {module for module in imported if below(module, "twins_jax")}
        assert all(below(module, "twins_jax.ops", "twins_jax.config", "twins_jax.errors") for module in layers)
    if below(name, "train") and not below(name, "train.benchmark"):
        refuse("train.benchmark")
    if below(name, "train") and not below(name, "train.benchmark", "train.recipes", "train.tasks"):
        refuse("train.tasks")
    if task := re.match(r"train\.tasks\.(\w+)", name):
        others = [folder.name for folder in (ROOT / "train" / "tasks").iterdir() if folder.is_dir()]
        refuse(*(f"train.tasks.{other}" for other in others if other != task[1]))
    if not below(name, "train.recipes", "train.tasks"):
        assert [module for module in imported if re.match(r"train\.tasks\.\w+\.config\b", module)] == []


@pytest.mark.parametrize("name", CORE)
def test_the_core_names_no_task_label_or_metric(name: str) -> None:
    text = (ROOT / "train" / f"{name}.py").read_text(encoding="utf-8")
    words = r"classif\w*|segment\w*|detect(?!s\b)\w*|labels?|top-?[15]|accuracy|mi?ou|box_ap|mixup|class names"
    assert re.findall(words, text, re.IGNORECASE) == []
