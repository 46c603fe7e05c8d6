"""The documents as a reader meets them: blocks of code, words in code, links and the places that links lead to."""

import dataclasses
import json
import os
import re
import shlex
import stat
import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.support.paths import ROOT

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of code, or a cell of code of a notebook."""

    language: str
    text: str


@dataclasses.dataclass(frozen=True)
class Page:
    """A document.

    Attributes:
        path: of its file.
        blocks: of code, in order.
        words: between backticks.
        links: to other places, as they are written.
        anchors: of its headings, as GitHub makes them; of two that are the same, neither.
    """

    path: Path
    blocks: tuple[Block, ...]
    words: tuple[str, ...]
    links: tuple[str, ...]
    anchors: frozenset[str]

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()


def read_page(path: Path) -> Page:
    tokens = MarkdownIt("commonmark").enable("table").parse(_markdown(path))
    children = [child for token in tokens for child in token.children or ()]
    targets = [child.attrs.get("href", child.attrs.get("src")) for child in children]
    headings = [_anchor(tokens[i + 1]) for i, token in enumerate(tokens) if token.type == "heading_open"]
    return Page(
        path,
        tuple(Block(token.info.strip(), token.content) for token in tokens if token.type == "fence"),
        tuple(child.content for child in children if child.type == "code_inline"),
        tuple(str(target) for target in targets if target is not None),
        frozenset(name for name in headings if headings.count(name) == 1),
    )


def _markdown(path: Path) -> str:
    """Returns the text of a page; cells of code become fenced blocks."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif source.startswith("%%bash\n"):
            parts.append(f"```bash\n{source.removeprefix('%%bash')}\n```")
        else:
            parts.append(f"```python\n{source}\n```")
    return "\n\n".join(parts)


def _anchor(heading: Token) -> str:
    text = "".join(child.content for child in heading.children or () if child.type in ("text", "code_inline"))
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


PAGES = [
    read_page(path)
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")), NOTEBOOK)
]


def shell_commands(text: str, programs: Collection[str], folder: Path) -> list[list[str]]:
    """Lists the commands that bash would run, each as its words, after loops, variables and quotes.

    Args:
        text: of a block.
        programs: the only ones that exist; each takes down its words and does nothing.
        folder: an empty one.

    Raises:
        AssertionError: bash cannot run the text with these programs.
    """
    log, bin_folder = folder / "log", folder / "bin"
    log.touch()
    bin_folder.mkdir()
    for program in programs:
        script = bin_folder / program
        # Whole lines: programs in the background write at the same time.
        script.write_text('#!/bin/bash\nline=$(printf "%q " "${0##*/}" "$@")\necho "$line" >>"$LOG"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    activate = folder / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    environment = {"PATH": str(bin_folder), "LOG": str(log)}
    command = ["/bin/bash", "--noprofile", "--norc", "-euo", "pipefail", "-c", f"{text}\nwait"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{text}\n{done.stderr}"
    return [shlex.split(line) for line in log.read_text().splitlines()]


PYTHON = re.compile(r'\bpython (?:-m \S+|\S+\.py)[^"&|;]*')


def inline_commands(words: Collection[str]) -> Iterator[list[str]]:
    """Yields the calls of Python among words in code, each as its words."""
    for word in words:
        if found := PYTHON.search(word):
            yield shlex.split(found[0])


def repository_files() -> frozenset[str]:
    """Lists the paths of all files that git knows or would add, and of their folders, which end in a slash."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):  # an unpacked sdist
        listed = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()]
    files = [path for path in listed if os.path.lexists(ROOT / path)]
    folders = {f"{parent.as_posix()}/" for path in files for parent in Path(path).parents if parent.name}
    return frozenset([*files, *folders])
