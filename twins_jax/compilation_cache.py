"""Compiled programs kept on disk: a command that is started again does not compile again."""

import contextlib
import os
import stat
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from twins_jax.command_line import Parser
from twins_jax.ending import say
from twins_jax.errors import one_line
from twins_jax.paths import target_path

OFF = "off"


def add_flag(parser: Parser) -> None:
    """Adds `--compilation_cache`, whose value is for `compilation_cache`."""
    parser.add_argument(
        "--compilation_cache",
        metavar="FOLDER",
        help=f"keep compiled programs in it (default: twins_jax/compiled in the user's cache folder); {OFF}: nowhere",
    )


@contextlib.contextmanager
def compilation_cache(folder: str | None) -> Iterator[None]:
    """Keeps the programs that are compiled meanwhile in a folder, and takes from it those that it has already.

    A folder that cannot be used, or an entry that is damaged, costs a warning of one line and the time to compile. The
    folder can be removed at any time.

    Args:
        folder: a path; "off"; or None for what JAX's own setting names (`JAX_COMPILATION_CACHE_DIR`) or, without it,
            `twins_jax/compiled` in the user's folder of caches.

    Raises:
        InputError: the text is no path.
    """
    if folder is None and jax.config.values["jax_compilation_cache_dir"]:
        yield
        return
    path: Path | None = None
    if folder != OFF:
        path = _default() if folder is None else target_path("--compilation_cache", folder).absolute()
        if problem := _make(path):
            say(f"warning: no compilation cache: {problem}")
            path = None
    options = {
        "jax_compilation_cache_dir": str(path) if path else None,
        "jax_persistent_cache_min_compile_time_secs": 0.0,  # JAX's own bound, a second, leaves out small ones
    }
    before = {name: jax.config.values[name] for name in options}
    with _brief_warnings(path):
        try:
            _configure(options)
            yield
        finally:
            _configure(before)


def _default() -> Path:
    """Returns the folder by the XDG base directory specification, which ignores relative paths."""
    caches = os.environ.get("XDG_CACHE_HOME", "")
    caches = caches if os.path.isabs(caches) else os.path.expanduser("~/.cache")
    return Path(caches) / "twins_jax" / "compiled"


def _make(path: Path) -> str:
    """Makes the folder, for its owner alone; returns what is wrong with it, or ""."""
    if not path.is_absolute():
        return "the user has no home folder"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        return f"{path}: {error.strerror}"
    # JAX runs what is in it.
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{path}: others can write to it: they could change what runs here"
    return "" if os.access(path, os.W_OK | os.X_OK) else f"{path}: is not writable"


def _configure(options: Mapping[str, object]) -> None:
    for name, value in options.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()  # JAX looks at the settings when it compiles for the first time


@contextlib.contextmanager
def _brief_warnings(path: Path | None) -> Iterator[None]:
    """Prints JAX's warnings of the cache on one line; they come where an entry cannot be read or written."""
    show = warnings.showwarning

    def show_briefly(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if "persistent compilation cache" in str(message):
            reason = one_line(message) if isinstance(message, Warning) else message
            say(f"warning: {reason}; {path} can be removed")
        else:
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = show_briefly
    try:
        yield
    finally:
        warnings.showwarning = show
