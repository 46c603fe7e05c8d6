"""A variant for whole runs: a narrow `twins_svt_tiny` with the fewest blocks that have every kind of layer.

Compiling blocks and evaluating 355 images by programs that are compiled fast take most of the time of a short run.
"""

import dataclasses
import sys

from twins_jax.config import VARIANTS

NAME = "short"
CONFIG = dataclasses.replace(
    VARIANTS["twins_svt_tiny"], embed_dims=(16, 32, 48, 64), num_heads=(1, 2, 3, 4), depths=(2, 1, 1, 1)
)

COMMAND = (
    *(sys.executable, "-c"),
    "import sys; from tests.support import compilation, short; from train.main import main; "
    "compilation.compile_fast(); short.VARIANTS[short.NAME] = short.CONFIG; sys.exit(main(sys.argv[1:]))",
)
"""`python -m train.main` with this variant, compiled as `alone.call_main` does."""
