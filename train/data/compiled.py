"""Compilation of kernels, with a cache where one can be written."""

import contextlib
from collections.abc import Callable
from typing import Any

import numba
from numba.core.caching import FunctionCache, NullCache


def compiled(function: Callable[..., Any]) -> Any:
    """Compiles a function on its first call, for callers without the GIL.

    Later processes read the machine code from numba's cache: beside the source file, else in the user's cache folder,
    or in $NUMBA_CACHE_DIR where that is set. Where none can be written, as in an install of another user without a
    home, each process compiles for itself. A folder in a shared temporary place is no substitute: numba runs what it
    finds in its cache.
    """
    dispatcher = numba.njit(nogil=True)(function)
    try:
        dispatcher._cache = _Cache(function)
    except (RuntimeError, OSError):  # numba finds no place; its `cache=True` would end the import with that
        dispatcher._cache = NullCache()
    return dispatcher


class _Cache(FunctionCache):
    """A cache that is left alone where it is damaged, or its disk full; numba's would end the call."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # unpickling damaged files raises any kind
            with contextlib.suppress(Exception):
                self.flush()  # to save anew
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(Exception):  # before it saves, it reads the same files
            super().save_overload(sig, data)
