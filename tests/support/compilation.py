"""Programs that are compiled fast and run slowly."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def fast_compilation() -> Iterator[None]:
    """For programs that run a few times, whose rounding is compared with no bound on it."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
        # Else later tests get JAX's own small programs, its random numbers' for one, from this way of compiling.
        jax.clear_caches()
