"""Huge pages for the memory of a training process.

XLA's CPU backend takes a step's memory, a gigabyte or more, anew from the system for each step, which clears it page by
page. In pages of 2 MiB instead of 4 KiB a step takes less time and as much memory: 1,347 instead of 1,720 ms with
PCPVT-S, 1,120 instead of 1,304 ms with SVT-S (eight images in float32, two cores of an AMD EPYC, jaxlib 0.10.2). To
compare: `python -m train.benchmark --mode train`, and the same with `GLIBC_TUNABLES=glibc.malloc.hugetlb=0`.

glibc reads the setting when a process starts, and at no other time. From a clone a start takes no longer for it. From a
wheel it imports JAX twice, because `twins_jax` has done so before it comes here.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "GLIBC_TUNABLES"
TUNABLE = "glibc.malloc.hugetlb"

RESTARTED = "twins_restarted"
"""Name of the `-X` option of a process that has started anew."""

OFFERED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""Linux: "[madvise]" if a process gets huge pages where it asks for them; with "[always]" it need not ask."""


def restart_with_huge_pages() -> None:
    """Starts this command anew, in the same process, if the system offers huge pages and the environment says nothing.

    `GLIBC_TUNABLES=glibc.malloc.hugetlb=0` keeps the small pages. Other C libraries ignore the variable.
    """
    setting = _setting()
    # Not by the variable: the system takes it from a Python with privileges of its own, in every start anew.
    is_restarted = RESTARTED in sys._xoptions
    if setting and sys.executable and not is_restarted:
        command = [sys.executable, "-X", RESTARTED, *sys.orig_argv[1:]]
        with contextlib.suppress(OSError):
            os.execve(sys.executable, command, {**os.environ, VARIABLE: setting})


def is_command(module: str, script: str) -> bool:
    """True if this process is `python -m module` or the script of that name, as Python begins to import the module."""
    if sys.argv[:1] == ["-m"]:  # Python's own mark while it looks for the module
        options = sys.orig_argv[1:]
        return "-m" in options and options[options.index("-m") + 1 :][:1] == [module]
    return os.path.basename("".join(sys.argv[:1])) == script


@contextlib.contextmanager
def huge_pages_in_new_processes() -> Iterator[None]:
    """Gives processes that start meanwhile what `restart_with_huge_pages` gives its own."""
    before = os.environ.get(VARIABLE)
    if setting := _setting():
        os.environ[VARIABLE] = setting
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


def _setting() -> str | None:
    """The variable's value that asks for huge pages; None where nobody offers any, or it is chosen already."""
    others = os.environ.get(VARIABLE, "")
    try:
        offered = "[madvise]" in OFFERED.read_text()
    except OSError:
        offered = False
    return ":".join(filter(None, (others, f"{TUNABLE}=1"))) if offered and TUNABLE not in others else None
