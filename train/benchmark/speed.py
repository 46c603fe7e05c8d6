"""python -m train.benchmark: speed of inference and of the training step, beside timm's in the same run.

Every side (this package; with `--against timm` timm's models eager, in channels-last layout and under torch.compile)
is a process of its own. One works at a time and has the cores to itself. Rounds go over all sides in turn,
A B C A B C ...: other work on the machine counts little, and for all sides. Figures are medians of the rounds with
their quartiles; a ratio is the median of the ratios within rounds. Needs jax, flax (with optax, which flax itself
needs) and numpy only; torch and timm with `--against`.

    python -m train.benchmark --variants twins_svt_small --mode infer train --against timm
    python -m train.benchmark --batch 1 8 64 --size 224 448 896
    python -m train.benchmark --head upernet --variants twins_svt_small --size 512 --batch 2 --against timm

With `--head` the model is a segmenter: it gives logits of 150 classes at every pixel, and training has the loss there.
The other side is then transformers' UPerNet on timm's backbone. The share of the matrix rate counts the operations of
this package's program, which are fewer than the other's (see `twins_jax.ops.resized_conv`).
"""

import argparse
import itertools
import multiprocessing
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any, get_args

from twins_jax import list_models
from twins_jax.command_line import Parser
from twins_jax.config import AttentionImplementation
from twins_jax.ending import command_line
from twins_jax.errors import require
from twins_jax.segmentation.segmenter import SegmentationHead

from .backends import OURS, TIMM, Case, Worker
from .command import check_cases
from .results import check_out, write_figures

MODES = ("infer", "train")
HEADS = ("none", *get_args(SegmentationHead))
MAX_ROUNDS = 10_000


@command_line
def main(arguments: Sequence[str]) -> int:
    """Measures, prints a table, writes JSON and returns the exit code: 0, or 2 for a case that cannot be measured."""
    args = _parser().parse(arguments)
    _check(args)
    args.out = check_out(args.out)
    _measure_all(args, _about(args, arguments))
    return 0


def _check(args: argparse.Namespace) -> None:
    check_cases(args)
    require("--rounds", args.rounds, 2 <= args.rounds <= MAX_ROUNDS, f"an integer from 2 to {MAX_ROUNDS}")
    if args.against:
        is_known = "twins_svt_tiny" not in args.variants
        require("--variants", "twins_svt_tiny", is_known, "left out with --against timm: timm has no twins_svt_tiny")
        has_other = args.head != "semantic_fpn"
        require("--head", args.head, has_other, "left out with --against: PyTorch libraries have no such head")
        missing = [name for name in _libraries(args) if util.find_spec(name) is None]
        require("--against", args.against, not missing, f"left out without {' and '.join(missing)} installed")
    averages_one = args.head == "upernet" and "train" in args.mode and 1 in args.batch
    require("--batch", 1, not averages_one, "2 or more with --head upernet --mode train: BatchNorm of one position")
    attention = args.attention_implementation
    runs = attention != "cudnn" or (args.device, args.dtype) == ("cuda", "bfloat16")
    require("--attention_implementation", attention, runs, "used with --device cuda --dtype bfloat16")
    runs = attention != "pallas" or args.device != "tpu"
    require("--attention_implementation", attention, runs, "used with --device cuda, or cpu, which interprets kernels")


def _libraries(args: argparse.Namespace) -> list[str]:
    """The packages that make the other sides' models."""
    return ["torch", "timm", *(["transformers"] if args.head == "upernet" else [])]


def _measure_all(args: argparse.Namespace, report: dict[str, Any]) -> None:
    print(_HEADER, flush=True)
    for name, mode, batch, size in itertools.product(args.variants, args.mode, args.batch, args.size):
        case = Case(name, mode, batch, size, args.dtype, args.device, args.attention_implementation, args.head)
        result = measure(case, [OURS, *(args.against_modes if args.against else ())], args.rounds, args.seconds)
        print(_row(case, result), flush=True)
        report["results"].append(result)
        write_figures(args.out, report)  # now, or a later case that fails would lose it


def measure(case: Case, sides: Sequence[str], rounds: int, seconds: float) -> dict[str, Any]:
    """Measures the seconds of one call on every side.

    Args:
        case: the variant, images and computation.
        sides: of `backends`; the first is compared with each of the others.
        rounds: in which every side runs once for about `seconds`.
        seconds: of calls, in each round and side.

    Returns:
        For JSON: the case, each side's figures with the medians of its rounds, and the ratios of the first side's
        speed to the others', overall that to the best of the others under "ratio".
    """
    workers = [Worker(side, case) for side in sides]
    try:
        found: dict[str, Any] = {
            worker.side: worker.start() | {"rounds": []} for worker in workers
        }  # one after the other
        for _ in range(rounds):
            for worker in workers:
                found[worker.side]["rounds"].append(worker.time(seconds))
        for worker in workers:
            found[worker.side] |= worker.memory()
    finally:
        for worker in workers:
            worker.close()
    for figures in found.values():
        figures["seconds"] = _quartiles(figures["rounds"])
    result: dict[str, Any] = {"case": case.to_dict(), "sides": found}
    ours, *others = sides
    if others:
        best = min(others, key=lambda side: found[side]["seconds"][1])
        pairs = zip(found[best]["rounds"], found[ours]["rounds"], strict=True)
        result |= {"best_other": best, "ratio": _quartiles([theirs / own for theirs, own in pairs])}
    if "flops" in found[ours]:
        figures = found[ours]
        figures["share_of_matmul_rate"] = figures["flops"] / figures["seconds"][1] / figures["matmul_rate"]
    return result


def _quartiles(values: Sequence[float]) -> list[float]:
    return statistics.quantiles(values, n=4)


_HEADER = (
    f"{'variant':18} {'mode':5} {'batch':>5} {'side':>4}  {'ms/call (quartiles)':>26} {'img/s':>7} {'matmul':>6} "
    f"{'compile':>8} {'dispatch':>8} {'MiB':>6}  {'against the best of timm':30}"
)


def _row(case: Case, result: dict[str, Any]) -> str:
    own = result["sides"][OURS]
    low, median, high = (1e3 * value for value in own["seconds"])
    time = f"{median:.1f} ({low:.1f}..{high:.1f})"
    line = (
        f"{case.variant:18} {case.mode:5} {case.batch:5} {case.size:4}  {time:>26} {1e3 * case.batch / median:7.1f} "
        f"{own['share_of_matmul_rate']:6.0%} {own['compile_seconds']:6.1f} s {1e3 * own['dispatch_seconds']:5.2f} ms "
        f"{own['peak_bytes'] / 2**20:6.0f}"
    )
    if "ratio" not in result:
        return line
    best, (low, median, high) = result["best_other"], result["ratio"]
    others = ", ".join(
        f"{side.removeprefix('timm ')} {1e3 * figures['seconds'][1]:.1f} ms"
        for side, figures in result["sides"].items()
        if side != OURS
    )
    return f"{line}  {median:.2f}x ({low:.2f}..{high:.2f}) {best}: {others}"


def _about(args: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    packages = ["jax", "jaxlib", "flax", "numpy", *(_libraries(args) if args.against else [])]
    return {
        "command": ["python", "-m", __package__, *arguments],
        "versions": {name: metadata.version(name) for name in packages} | {"python": platform.python_version()},
        "machine": {"processor": _processor(), "cores": _cores(), "load": os.getloadavg()},
        "results": [],
    }


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _parser() -> Parser:
    parser = Parser(__doc__ or "", prog=f"python -m {__package__}")
    add = parser.add_argument
    published = [name for name in list_models() if name != "twins_svt_tiny"]
    add("--variants", nargs="+", default=published, metavar="NAME", help="default: the six published")
    add("--head", choices=HEADS, default="none", help="of a segmenter; none: classification")
    add("--mode", nargs="+", choices=MODES, default=["infer"], help="forward pass, or a step of AdamW")
    add("--batch", nargs="+", type=int, default=[8], help="images in a call")
    add("--size", nargs="+", type=int, default=[224], help="side of the images")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation (timm: autocast)")
    add("--device", choices=("cpu", "cuda", "tpu"), default="cpu")
    add("--attention_implementation", choices=get_args(AttentionImplementation), default="auto", help="of our side")
    add("--against", choices=("timm",), help="measure timm in the same run")
    add("--against_modes", nargs="+", choices=TIMM, default=list(TIMM), help="which of timm's modes; default: all")
    add("--rounds", type=int, default=9, help="in which each side is measured once (at least 2)")
    add("--seconds", type=float, default=1.0, help="of calls a round and side")
    add("--out", default="runs/benchmark.json", help="file for the figures")
    return parser


if __name__ == "__main__":
    multiprocessing.freeze_support()
    sys.exit(main(sys.argv[1:]))
