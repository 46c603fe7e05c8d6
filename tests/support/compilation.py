"""Programs that are compiled fast and run slowly."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
from jax._src import compiler, distributed

# XLA's older emitter of loops takes a quarter of the time: 0.9 s instead of 3.6 for the gradient of a model of five
# blocks, jaxlib 0.10. Later releases do not have it.
OPTIONS: dict[str, Any] = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}

ENVIRONMENT = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items()),
}
"""The same for a process that runs a command; `compile_fast` leaves the keys of JAX's compilation cache as they are."""


@contextlib.contextmanager
def fast_compilation() -> Iterator[None]:
    """For programs that run a few times, whose rounding is compared with no bound on it.

    Within another one it changes nothing: what was traced and compiled serves until the outer one ends.
    """
    if jax.config.read("jax_disable_most_optimizations"):
        yield
        return
    before, options = jax.config.read("jax_disable_most_optimizations"), compiler.get_compile_options
    compile_fast()
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
        compiler.get_compile_options = options
        # Else later tests get JAX's own small programs, its random numbers' for one, from this way of compiling.
        jax.clear_caches()


def compile_fast() -> None:
    """Compiles fast from now on, in a process that does nothing else."""
    jax.config.update("jax_disable_most_optimizations", True)
    compiler.get_compile_options = _with_options(compiler.get_compile_options)


def cache_in_every_process() -> None:
    """Lets each process of a run fill its compilation cache; JAX lets the first one alone do it.

    Each needs a folder of its own: nothing keeps one from reading a file that the other has half written.
    """
    write = compiler._cache_write

    def write_as_the_first(*args: Any) -> None:
        with mock.patch.object(distributed.global_state, "process_id", 0):
            write(*args)

    compiler._cache_write = write_as_the_first


def _with_options(get: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `OPTIONS` to those of each program."""

    @functools.wraps(get)
    def get_compile_options(*args: Any, env_options_overrides: Any = None, **kwargs: Any) -> Any:
        return get(*args, env_options_overrides=OPTIONS | dict(env_options_overrides or {}), **kwargs)

    return get_compile_options
