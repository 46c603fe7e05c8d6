"""Measures the peak memory of one port, over that of the imports, as a multiple of SRC's size.

    python tests/port/peak_memory.py SRC DST
"""

import os
import resource
import sys


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def size(path: str) -> int:
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)


if __name__ == "__main__":
    import jax
    import orbax.checkpoint
    import safetensors.numpy
    import torch

    import port_weights
    import twins_jax.pretrained
    from twins_jax.port import convert, files, source

    jax.numpy.zeros(1).block_until_ready()  # starts the backend
    before = peak()
    code = port_weights.main(sys.argv[1:])
    print((peak() - before) / size(sys.argv[1]))
    sys.exit(code)
