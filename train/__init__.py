"""Training and evaluation of Twins models."""

import os
import sys

from .huge_pages import restart_with_huge_pages
from .interrupt import end_in_one_line

# "-m" is Python's own mark while it looks for the module of `python -m train.main`.
_is_module, _name = sys.argv[:1] == ["-m"], os.path.basename("".join(sys.argv[:1]))
if (_is_module and f"{__name__}.main" in sys.orig_argv) or _name == "twins-train":
    restart_with_huge_pages()
if _is_module:
    end_in_one_line()
