"""python -m train.benchmark.roofline: the least time each part of a model can take on a device, and the time it takes.

The floor of a layer is the longer of two times: its FLOPs at the device's peak and its fewest bytes at the bandwidth
of its memory (the roofline model; `layer_costs` says what counts). A part's floor is the sum over its layers. With
`--measure` the layers run one by one on the device that JAX finds, and then the whole.

    python -m train.benchmark.roofline --batch 256 --dtype bfloat16 --mode infer train
    python -m train.benchmark.roofline --batch 256 --dtype bfloat16 --mode infer train --measure
    python -m train.benchmark.roofline --batch 8 --device this --measure
"""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from twins_jax import list_models
from twins_jax.command_line import Parser
from twins_jax.config import variant_config
from twins_jax.ending import command_line
from twins_jax.errors import require

from ..flops import matmul_rate, memory_rate
from .command import check_cases
from .layer_costs import Operation, count
from .layer_times import Timer
from .results import check_out, write_figures

NUM_CLASSES = 1000
PARTS = ("patch", "norms", "qkv", "sub-sampling", "LSA", "GSA", "projection", "MLP", "PEG", "head", "AdamW")


@dataclasses.dataclass(frozen=True)
class Device:
    """The two rates of the roofline.

    Attributes:
        flops: by dtype of the computation: a second, in dense matrix products.
        bandwidth: of the memory, bytes a second.
    """

    flops: dict[str, float]
    bandwidth: float


# NVIDIA's data sheets of the SXM modules, which give twice the dense rates ("with sparsity"). JAX computes float32
# products in TF32 on these unless another precision is asked for.
DEVICES = {
    "h100": Device({"bfloat16": 989.4e12, "float32": 494.7e12}, 3.35e12),
    "h200": Device({"bfloat16": 989.4e12, "float32": 494.7e12}, 4.8e12),
}


@command_line
def main(arguments: Sequence[str]) -> int:
    """Counts, measures if asked, prints tables, writes JSON and returns the exit code: 0, or 2 for bad arguments."""
    args = _parser().parse(arguments)
    check_cases(args)
    if args.measure and args.device != "this":
        found = _device_kind().lower()
        allowed = f"this with --measure, for the rates of the device that JAX finds, {found!r}"
        require("--device", args.device, args.device in found, allowed)
    args.out = check_out(args.out)
    _count_all(args, arguments)
    return 0


def _count_all(args: argparse.Namespace, arguments: Sequence[str]) -> None:
    rates = _measured_device(args.dtype) if args.device == "this" else DEVICES[args.device]
    report: dict[str, Any] = {
        "command": ["python", "-m", f"{__package__}.roofline", *arguments],
        "device": {"name": args.device, "flops": rates.flops[args.dtype], "bandwidth": rates.bandwidth},
        "measured_on": _device_kind() if args.measure else None,
        "results": [],
    }
    for name, mode, batch, size in itertools.product(args.variants, args.mode, args.batch, args.size):
        config = dataclasses.replace(variant_config(name), dtype=jnp.dtype(args.dtype))
        operations = count(config, NUM_CLASSES, batch, size, size)
        timer = Timer(config, NUM_CLASSES, mode, args.seconds) if args.measure else None
        result = {"variant": name, "mode": mode, "batch": batch, "size": size, "dtype": args.dtype}
        result |= summarize(operations, mode, rates.flops[args.dtype], rates.bandwidth, timer)
        if timer:
            result["measured_whole"] = timer.whole(batch, size)
        print(table(result), end="\n\n", flush=True)
        report["results"].append(result)
        write_figures(args.out, report)  # now, or a later case that fails would lose it


def summarize(
    operations: Sequence[Operation], mode: str, flops: float, bandwidth: float, timer: Timer | None = None
) -> dict[str, Any]:
    """Sums up a model's operations by part.

    Args:
        operations: of `train.benchmark.layer_costs.count`.
        mode: "infer" (forward) or "train" (forward, backward and AdamW).
        flops: the device's, a second.
        bandwidth: the device's, bytes a second.
        timer: measures each operation, where it is given.

    Returns:
        For JSON: for each part under "parts", and for all under "total", "flops", "bytes", "flops_seconds" and
        "bytes_seconds" (each resource's time alone), "floor" (seconds) and, with a timer, "measured" (seconds).
    """
    keys = ("flops", "bytes", "flops_seconds", "bytes_seconds", "floor", *(["measured"] if timer else []))
    parts: dict[str, dict[str, float]] = {part: dict.fromkeys(keys, 0) for part in PARTS}
    for operation in operations:
        figures = parts[operation.part]
        for work in (operation.forward, operation.backward) if mode == "train" else (operation.forward,):
            by_flops, by_bytes = work.flops / flops, work.bytes / bandwidth
            figures["flops"] += operation.count * work.flops
            figures["bytes"] += operation.count * work.bytes
            figures["flops_seconds"] += operation.count * by_flops
            figures["bytes_seconds"] += operation.count * by_bytes
            figures["floor"] += operation.count * max(by_flops, by_bytes)
        if timer:
            figures["measured"] += operation.count * timer.operation(operation)
    parts = {part: figures for part, figures in parts.items() if figures["bytes"]}
    return {"parts": parts, "total": {key: sum(figures[key] for figures in parts.values()) for key in keys}}


def table(result: dict[str, Any]) -> str:
    """One case's parts as text."""
    total = result["total"]
    lines = [
        f"{result['variant']} {result['mode']}, batch {result['batch']}, {result['size']}x{result['size']}, "
        f"{result['dtype']}: at most {result['batch'] / total['floor']:.0f} images/s",
        f"{'part':12} {'GFLOPs':>9} {'GB':>8} {'floor ms':>9} {'of total':>8}  {'bound by':8}",
    ]
    measured = "measured" in total
    if measured:
        lines[-1] += f" {'measured ms':>12} {'floor/measured':>14}"
    for name, figures in [*result["parts"].items(), ("total", total)]:
        bound = "FLOPs" if figures["flops_seconds"] > figures["bytes_seconds"] else "bytes"
        line = (
            f"{name:12} {figures['flops'] / 1e9:9.1f} {figures['bytes'] / 1e9:8.3f} {1e3 * figures['floor']:9.3f} "
            f"{figures['floor'] / total['floor']:8.1%}  {bound:8}"
        )
        if measured:
            line += f" {1e3 * figures['measured']:12.3f} {figures['floor'] / figures['measured']:14.1%}"
        lines.append(line)
    if measured:
        whole = result["measured_whole"]
        lines.append(f"{'in one':50} {1e3 * whole:12.3f} {total['floor'] / whole:14.1%}")
    return "\n".join(lines)


def _measured_device(dtype: str) -> Device:
    return Device({dtype: matmul_rate(jnp.dtype(dtype))}, memory_rate())


def _device_kind() -> str:
    return str(jax.devices()[0].device_kind)


def _parser() -> Parser:
    parser = Parser(__doc__ or "", prog=f"python -m {__package__}.roofline")
    add = parser.add_argument
    published = [name for name in list_models() if name != "twins_svt_tiny"]
    add("--variants", nargs="+", default=published, metavar="NAME", help="default: the six published")
    add("--mode", nargs="+", choices=("infer", "train"), default=["infer"], help="forward pass, or a step of AdamW")
    add("--batch", nargs="+", type=int, default=[256], help="images in a call")
    add("--size", nargs="+", type=int, default=[224], help="side of the images")
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the computation")
    add("--device", choices=(*DEVICES, "this"), default="h100", help="whose floor; this: measured where JAX runs")
    add("--measure", action="store_true", help="time every layer alone, and the whole, where JAX runs")
    add("--seconds", type=float, default=0.2, help="of calls a layer, with --measure")
    add("--out", default="runs/roofline.json", help="file for the figures")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
