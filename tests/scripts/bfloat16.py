"""bfloat16 logits beside those of PyTorch's autocast: `python tests/scripts/bfloat16.py [--variants ...]`.

Prints, as a Markdown table, both libraries' errors against PyTorch in float32 on the same random weights and images.
"""
# ruff: noqa: T201 - a script

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

import twins_jax
from tests.parity.reference import load, randomize
from twins_jax.port.timm_models import import_timm


class Logits(NamedTuple):
    """float32 [images, 1000].

    Attributes:
        truth: PyTorch's in float32; ours differ from them by less than 1e-6, see `test_models.py`.
        ours: in bfloat16.
        autocast: PyTorch's under autocast to bfloat16.
    """

    truth: np.ndarray
    ours: np.ndarray
    autocast: np.ndarray


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    published = [name for name in twins_jax.list_models() if name != "twins_svt_tiny"]
    parser.add_argument("--variants", nargs="+", choices=published, default=published)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args()
    print(
        "| | largest error | autocast's | root mean square | autocast's | top-1 agreement | autocast's | nearly tied |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in args.variants:
        truth, ours, autocast = compute(name, args.images, args.size)
        pairs = [[figure(logits, truth) for logits in (ours, autocast)] for figure in (largest_error, rms_error)]
        agreements = [agree(logits, truth).mean() for logits in (ours, autocast)]
        cells = [f"{error:.4f}" for pair in pairs for error in pair] + [f"{share:.3f}" for share in agreements]
        print(f"| `{name}` | {' | '.join(cells)} | {(lead(truth) < 0.01).mean():.2f} |", flush=True)
    return 0


def compute(name: str, count: int, size: int) -> Logits:
    """Runs a variant with random weights on random images [count, size, size, 3]."""
    torch.manual_seed(0)
    theirs = randomize(import_timm().create_model(name))
    images = np.random.default_rng(0).standard_normal((count, size, size, 3), np.float32)

    def run_theirs(*, autocast: bool) -> np.ndarray:
        parts = torch.from_numpy(images).permute(0, 3, 1, 2).split(64)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return torch.cat([theirs(part).float() for part in parts]).numpy()

    apply, params = twins_jax.split_model(load(theirs.state_dict(), dtype=jnp.bfloat16))
    program = jax.jit(apply)
    ours = [np.asarray(program(params, images[i : i + 64]), np.float32) for i in range(0, count, 64)]
    return Logits(run_theirs(autocast=False), np.concatenate(ours), run_theirs(autocast=True))


def largest_error(logits: np.ndarray, truth: np.ndarray) -> float:
    """The largest error of a logit relative to the largest logit of its image."""
    return float((np.abs(logits - truth) / np.abs(truth).max(axis=1, keepdims=True)).max())


def rms_error(logits: np.ndarray, truth: np.ndarray) -> float:
    """The root mean square of all errors relative to that of all logits."""
    return float(np.sqrt(((logits - truth) ** 2).mean() / (truth**2).mean()))


def agree(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """True where the largest logits of an image are of the same class: bool [images]."""
    return logits.argmax(axis=1) == truth.argmax(axis=1)


def lead(truth: np.ndarray) -> np.ndarray:
    """The lead of the first class of an image over the second, relative to its largest logit: [images]."""
    second, first = np.sort(truth, axis=1)[:, -2:].T
    return (first - second) / np.abs(truth).max(axis=1)


if __name__ == "__main__":
    sys.exit(main())
