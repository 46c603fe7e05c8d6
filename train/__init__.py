"""Training and evaluation of Twins models."""

import sys

from .huge_pages import is_command, restart_with_huge_pages
from .interrupt import end_in_one_line

if is_command(f"{__name__}.main", "twins-train"):
    restart_with_huge_pages()
if sys.argv[:1] == ["-m"]:  # Python's own mark while it looks for the module of `python -m train.main`
    end_in_one_line()
