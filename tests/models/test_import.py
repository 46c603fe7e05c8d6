import subprocess
import sys

HEAVY = ("torch", "tensorflow", "tensorflow_datasets", "grain", "orbax", "PIL", "train", "jax.experimental.pallas")


def test_import_brings_in_nothing_that_only_some_uses_need() -> None:
    code = f"import sys, twins_jax; print(*(name for name in {HEAVY} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
