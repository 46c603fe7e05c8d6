"""The start of a process with huge pages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from train import huge_pages
from train.huge_pages import VARIABLE, huge_pages_in_new_processes

STRIPPED = "STRIPPED"
SCRIPT = f"""
import os, pathlib, sys
if {STRIPPED!r} in os.environ:
    os.environ.pop("{VARIABLE}", None)
from train import huge_pages
huge_pages.OFFERED = pathlib.Path(sys.argv[1])
print(os.getpid(), os.environ.get("{VARIABLE}"), sys.argv[2:], flush=True)
huge_pages.restart_with_huge_pages()
"""
HUGE = "glibc.malloc.hugetlb=1"


@pytest.fixture
def offered(tmp_path: Path) -> Path:
    path = tmp_path / "enabled"
    path.write_text("always [madvise] never\n")
    return path


def starts(offered: Path, setting: str | None, **variables: str) -> list[list[str]]:
    """Returns the line of each start of the script: its process, its variable, and its other arguments."""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE} | variables
    command = [sys.executable, "-c", SCRIPT, str(offered), "--flag", "a b"]
    done = subprocess.run(
        command, env=environment | ({VARIABLE: setting} if setting else {}), capture_output=True, text=True, check=True
    )
    return [line.split(" ", 2) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("setting", [None, "glibc.malloc.arena_max=4"])
def test_a_command_starts_anew_once(offered: Path, setting: str | None) -> None:
    first, second = starts(offered, setting)
    assert (first[1], second[1]) == (str(setting), f"{setting}:{HUGE}" if setting else HUGE)
    assert first[0] == second[0], "it must stay the same process"
    assert first[2] == second[2] == "['--flag', 'a b']"


def test_a_command_whose_variable_is_taken_away_starts_anew_once(offered: Path) -> None:
    assert [line[1] for line in starts(offered, None, **{STRIPPED: "1"})] == ["None", "None"]


@pytest.mark.parametrize("setting", [HUGE, "glibc.malloc.hugetlb=0"])
def test_who_has_chosen_keeps_it(offered: Path, setting: str) -> None:
    assert [line[1] for line in starts(offered, setting)] == [setting]


def test_nothing_starts_anew_without_an_offer(offered: Path) -> None:
    for modes in ("[always] madvise never", "always madvise [never]"):
        offered.write_text(modes)
        assert len(starts(offered, None)) == 1
    offered.unlink()
    assert len(starts(offered, None)) == 1


def test_training_asks_and_no_other_command(tmp_path: Path) -> None:
    """A `sitecustomize` stands in for the system call, which would leave nothing to look at."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib\n"
        "pathlib.Path.read_text = lambda self, *_: 'always [madvise] never'\n"
        "def execve(path, arguments, environment):\n"
        f"    print('anew', arguments[1:], environment['{VARIABLE}'], flush=True)\n"
        "    os._exit(7)\n"
        "os.execve = execve\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])

    def run(*arguments: str) -> tuple[int, str]:
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout.strip()

    assert run("-m", "train.main", "digits") == (
        7,
        f"anew ['-X', 'twins_restarted', '-m', 'train.main', 'digits'] {HUGE}",
    )
    script = tmp_path / "twins-train"
    script.write_text("import train\n")
    assert run(str(script), "digits") == (7, f"anew ['-X', 'twins_restarted', '{script}', 'digits'] {HUGE}")
    assert run("-m", "train.plot", "train.main")[0] == 2
    assert run("-c", "import train.main") == (0, "")


@pytest.mark.parametrize(
    ("setting", "inside"),
    [
        (None, HUGE),
        ("glibc.malloc.arena_max=4", f"glibc.malloc.arena_max=4:{HUGE}"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_new_processes(offered: Path, monkeypatch: pytest.MonkeyPatch, setting: str | None, inside: str) -> None:
    monkeypatch.setattr(huge_pages, "OFFERED", offered)
    monkeypatch.delenv(VARIABLE, raising=False)
    if setting:
        monkeypatch.setenv(VARIABLE, setting)
    with huge_pages_in_new_processes():
        assert os.environ[VARIABLE] == inside
    assert os.environ.get(VARIABLE) == setting
