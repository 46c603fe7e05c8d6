"""Measures the peak memory of one port, over that of the imports, as a multiple of SRC's size.

python tests/scripts/peak_memory.py SRC DST
"""

import importlib
import os
import sys


def peak() -> int:
    """The most memory this program has had, in bytes; ru_maxrss would begin with what its parent had."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def size(path: str) -> int:
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)


MODULES = ("torch", "orbax.checkpoint", "safetensors.numpy", "twins_jax.pretrained", "twins_jax.port.read")

if __name__ == "__main__":
    import jax

    import port_weights

    for module in MODULES:
        importlib.import_module(module)
    jax.numpy.zeros(1).block_until_ready()  # starts the backend
    before = peak()
    code = port_weights.main(sys.argv[1:])
    print((peak() - before) / size(sys.argv[1]))  # noqa: T201
    sys.exit(code)
