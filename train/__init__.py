"""Training and evaluation of Twins models."""

import sys

from .interrupt import end_in_one_line

if sys.argv[:1] == ["-m"]:  # Python's own mark while it looks for the module of `python -m train.main`
    end_in_one_line()
