"""`python -m train.benchmark`: see `speed`."""

import sys

from .speed import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
