"""Only `ops` knows backends and kernels, and only `ops/xla_cpu.py` knows CPUs: no other file has the words."""

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "twins_jax"
BACKENDS = r"\b(backends?|xla|pallas|triton|cudnn|gpus?|tpus?|cuda|fus(e|ed|es|ing|ions?))\b"
CPUS = r"cpus?(?![a-z])"
ALLOWED = {
    "config.py": r"xla|pallas|cudnn|gpus|fused",  # the values of `attention_implementation`, and their meaning
    "fit.py": "cpu",  # the method of torch's tensors, in the advice to callers
    "ops/dispatch.py": "cpu",  # among the platforms that an exported program is lowered for
    "segmentation/upernet.py": "fused|fusion",  # of maps: the paper's term
    "port/torch_tensor.py": "cpu",  # within the name of a function of torch's
    "port/timm_models.py": "cuda",  # what some builds of torch lack
}


def found(file: Path, pattern: str) -> list[str]:
    text = file.read_text(encoding="utf-8")
    text = re.sub(r"(ops[./])?xla_cpu\b", "", text)  # the module's name, where code or text refers to it
    name = file.relative_to(PACKAGE).as_posix()
    words = [match[0] for match in re.finditer(pattern, text, re.IGNORECASE)]
    return [word for word in words if not re.fullmatch(ALLOWED.get(name, "(?!)"), word, re.IGNORECASE)]


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_words_that_only_ops_has(file: Path) -> None:
    if PACKAGE / "ops" not in file.parents:
        assert found(file, BACKENDS) == []
    if file != PACKAGE / "ops" / "xla_cpu.py":
        assert found(file, CPUS) == []
