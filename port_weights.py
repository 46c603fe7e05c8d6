"""Ports Twins weights between PyTorch and twins_jax, either way: `python port_weights.py SRC DST`."""

import argparse
import json
import logging
import sys
import warnings

if __name__ == "__main__":  # Ctrl-C during the imports that follow, which take a second; then `command_line` catches it
    sys.excepthook = lambda kind, error, trace: (
        print("stopped by SIGINT", file=sys.stderr)
        if issubclass(kind, KeyboardInterrupt)
        else sys.__excepthook__(kind, error, trace)
    )

from twins_jax.command_line import Parser, choice_of_weights
from twins_jax.ending import command_line
from twins_jax.errors import InputError, shown_list
from twins_jax.paths import target_path, weights_source

DESCRIPTION = """\
Ports Twins weights between PyTorch and twins_jax; the direction follows from SRC.

SRC in PyTorch: a .safetensors or .pth file with the names of timm or upstream (classification, segmentation or
detection), a Hugging Face snapshot folder, hf-hub:OWNER/NAME, or a variant's name, such as twins_svt_small, for its
published weights. It becomes an Orbax folder, or with a DST that ends in .safetensors a file of this project's names.

SRC of this project: an Orbax folder, a training run's folder, a .safetensors file or one of flax.serialization. It
becomes a PyTorch file that timm loads, .safetensors or .pth (.pt, .bin, .ckpt, .pth.tar) as DST ends, or with another
DST an Orbax folder of the parameters alone.

Class names, preprocessing and window_padding, which a training run or a snapshot declares, travel with the weights; a
.pth has no place for them."""

EPILOG = """\
Exit codes: 0: all that was asked for is done and, with --verify, held; 1: --verify found a difference;
2: an error, named on one line, and nothing written; 130: stopped by Ctrl-C, and nothing written."""


@command_line
def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = Parser(DESCRIPTION, epilog=EPILOG)
    parser.add_argument("src", metavar="SRC", help="what to read")
    parser.add_argument("dst", metavar="DST", nargs="?", help="what to write")
    parser.add_argument("--model", metavar="NAME", help="the variant (default: read off the weights)")
    parser.add_choice_of_weights("SRC")
    parser.add_argument("--overwrite", action="store_true", help="replace DST if it exists")
    parser.add_argument("--inspect", action="store_true", help="describe SRC; write nothing")
    parser.add_argument("--verify", action="store_true", help="run both models, timm's and ours, and compare")
    parser.add_argument("--report", metavar="FILE", help="write --verify's outcome as JSON, too")
    args = parser.parse(argv)
    if args.inspect and (args.dst is not None or args.verify or args.overwrite):
        parser.error("--inspect takes SRC alone")
    if not args.inspect and args.dst is None:
        parser.error("DST is missing (or --inspect)")
    if args.report is not None and not args.verify:
        parser.error("--report is of --verify")
    args.src = weights_source("SRC", args.src)
    args.dst = None if args.dst is None else str(target_path("DST", args.dst))
    args.report = None if args.report is None else str(target_path("--report", args.report, "file"))
    return _inspect(args) if args.inspect else _port(args)


def _inspect(args: argparse.Namespace) -> int:
    from twins_jax.port.convert import port
    from twins_jax.port.describe import describe
    from twins_jax.port.read import read_weights

    weights = read_weights(args.src, **choice_of_weights(args))
    print(describe(weights, port(weights, args.model)))
    return 0


def _port(args: argparse.Namespace) -> int:
    from twins_jax.port.convert import port
    from twins_jax.port.read import read_weights
    from twins_jax.port.write import check_paths, plan_target, write_target

    check_paths(args.src, args.dst, *([args.report] if args.report else []), overwrite=args.overwrite)
    weights = read_weights(args.src, **choice_of_weights(args))
    ported = port(weights, args.model)
    weights.check_head(ported.model)
    target = plan_target(weights, ported, args.dst)
    if args.verify:
        from twins_jax.port.timm_models import import_timm

        import_timm()
        if weights.layout.is_torch == target.layout.is_torch:
            raise InputError(f"{args.dst}: --verify compares with PyTorch, and neither SRC nor DST is of it")

    is_torch, count = weights.layout.is_torch, len(ported.params)
    print(f"{weights.label}: {weights.container} of {weights.layout.label} names: {ported.model.name}")
    for kind, names in weights.notes:
        print(f"{kind}: {names}")
    if ported.not_ported:
        print(f"not ported: {len(ported.not_ported)} tensors: {shown_list(ported.not_ported)}")
    del weights  # with it, write_target could not let go of what it has written
    write_target(ported, target, args.dst, overwrite=args.overwrite)
    print(f"{args.dst}: {target.label} of {target.layout.label} names: {count} tensors")
    return _verify(args, is_torch) if args.verify else 0


def _verify(args: argparse.Namespace, from_torch: bool) -> int:
    from twins_jax.files import write_text
    from twins_jax.port.read import read_weights
    from twins_jax.port.verify import verify
    from twins_jax.pretrained import model_from_pretrained

    choice = choice_of_weights(args)  # of SRC; DST holds one set of weights
    if from_torch:
        weights, model = read_weights(args.src, **choice), model_from_pretrained(args.dst, name=args.model)
    else:
        weights, model = read_weights(args.dst), model_from_pretrained(args.src, name=args.model, **choice)
    report = verify(weights, model, name=args.model)
    print(report.to_text())
    if args.report:
        write_text(args.report, json.dumps(report.to_json(), indent=2) + "\n")
    return 0 if report.holds else 1


def _print_nothing_but_errors() -> None:
    """Silences what Orbax prints beside the exception it raises: warnings, and tracebacks of other failed writes."""
    warnings.simplefilter("ignore")
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None


def command() -> int:
    """Runs as a program of its own; the installed one is `twins-port`."""
    _print_nothing_but_errors()
    return main()


if __name__ == "__main__":
    sys.exit(command())
