"""A variant for whole runs: a narrow `twins_svt_tiny` with the fewest blocks that have every kind of layer.

Compiling blocks and evaluating 355 images by programs that are compiled fast take most of the time of a short run.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from twins_jax.config import VARIANTS

NAME = "short"
CONFIG = dataclasses.replace(
    VARIANTS["twins_svt_tiny"], embed_dims=(16, 32, 48, 64), num_heads=(1, 2, 3, 4), depths=(2, 1, 1, 1)
)

COMMAND = (
    *(sys.executable, "-c"),
    "import sys; from tests.support import compilation, short; from train.main import main; "
    "compilation.compile_fast(); short.describe_without_measuring(setattr); "
    "short.VARIANTS[short.NAME] = short.CONFIG; sys.exit(main(sys.argv[1:]))",
)
"""`python -m train.main` with this variant, compiled as `alone.call_main` does."""


def describe_without_measuring(patch: Callable[[Any, str, Any], None]) -> None:
    """Gives the first line of a run made-up figures: to trace the loss and to multiply matrices takes seconds."""
    import train.flops

    patch(train.flops, "loss_flops", lambda *_: 1e9)
    patch(train.flops, "matmul_rate", lambda _: 1e11)
