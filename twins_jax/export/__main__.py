"""Exports a model to a file that runs without this library: `python -m twins_jax.export WEIGHTS DST`."""

import argparse
import os
import sys
import time
from typing import Any, get_args

from twins_jax import ops
from twins_jax.classifier import TwinsClassifier
from twins_jax.command_line import Parser, choice_of_weights
from twins_jax.config import RuntimeOptions, WindowPadding
from twins_jax.ending import command_line, say
from twins_jax.errors import InputError
from twins_jax.export.export import ExportError, checked_target, export_model
from twins_jax.model import Model
from twins_jax.paths import target_path, weights_source
from twins_jax.pretrained import backbone_from_pretrained, model_from_pretrained

DTYPES = ("float32", "bfloat16", "float16")

OUTPUTS = ("features", "maps")
"""Those of a classifier without its head, and those of its backbone."""

DESCRIPTION = f"""\
Exports a model, with its weights, to a file that runs without this library.

DST ends in .jax: StableHLO of jax.export, for {", ".join(ops.PLATFORMS)}. The packages jax and flatbuffers run it:
    call = jax.export.deserialize(pathlib.Path(DST).read_bytes()).call
    logits = call(images)
DST.json beside it says what it takes and returns, with preprocessing, class names, versions and the check's outcome.

DST ends in .onnx: an ONNX file, which needs the extra `onnx` to be written. The same is in its metadata, "twins_jax".

Either takes images [B, H, W, C] of any batch, and of one size. WEIGHTS is a file, folder or hf-hub:OWNER/NAME as
port_weights.py takes them. A classifier returns logits, or with --outputs features what its head would read; a backbone
returns the maps of its four stages."""

EPILOG = """\
Before it takes its name, the file is run on random images, and its outputs are compared with the model's.

Exit codes: 0: written, and the same as the model to within rounding; 1: it was not, and is not kept;
2: an error, named on one line, and nothing written; 130: stopped by Ctrl-C, and nothing written."""


@command_line
def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = Parser(DESCRIPTION, prog="python -m twins_jax.export", epilog=EPILOG)
    parser.add_argument("weights", metavar="WEIGHTS", help="what to read")
    parser.add_argument("dst", metavar="DST", help="the file to write, .jax or .onnx")
    parser.add_argument("--image_size", metavar="N|HxW", type=size, help="of the images (default: as evaluated)")
    parser.add_argument("--batch_size", metavar="N", type=int, help="the only batch to take (default: any)")
    parser.add_argument("--normalize", action="store_true", help="take uint8 RGB pixels, and normalize them inside")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the computation (default: %(default)s)")
    parser.add_argument("--outputs", choices=OUTPUTS, help="the parts of a classifier to take (default: all)")
    parser.add_argument("--window_padding", choices=get_args(WindowPadding), help="(default: as the weights declare)")
    parser.add_argument("--model", metavar="NAME", help="the variant (default: read off the weights)")
    parser.add_choice_of_weights("WEIGHTS")
    parser.add_argument("--overwrite", action="store_true", help="replace DST if it exists")
    args = parser.parse(argv)
    args.weights = weights_source("WEIGHTS", args.weights)
    target = checked_target(target_path("DST", args.dst, "file"), overwrite=args.overwrite)
    if os.path.realpath(args.weights) == os.path.realpath(target):
        raise InputError(f"{target}: is given twice, and would be overwritten")
    return _export(args, target)


def _export(args: argparse.Namespace, target: str) -> int:
    start = time.monotonic()
    model = _load(args)
    print(f"{args.weights}: read; writing {target} and checking it ...", flush=True)
    try:
        manifest = export_model(
            model,
            target,
            image_size=args.image_size,
            batch_size=args.batch_size,
            normalize=args.normalize,
            overwrite=args.overwrite,
        )
    except ExportError as error:
        say(f"error: {error}")
        return 1
    images = manifest["input"]
    print(f"{manifest['architecture']}: images {_described(images)} ({images['values']})")
    for output, check in zip(manifest["outputs"], manifest["check"], strict=True):
        print(
            f"{output['name']} {_described(output)}: differs from the model's by {check['difference']:.1e} of the "
            f"largest; {check['bound']:.1e} is allowed"
        )
    print(f"{target}: {os.path.getsize(target) / 1e6:.1f} MB in {time.monotonic() - start:.1f} s")
    return 0


def _load(args: argparse.Namespace) -> Model:
    choice, options = choice_of_weights(args), RuntimeOptions(dtype=args.dtype)
    if args.window_padding is not None:
        options["window_padding"] = args.window_padding
    if args.outputs == "maps":
        return backbone_from_pretrained(args.weights, name=args.model, **choice, **options)
    num_classes = 0 if args.outputs == "features" else None
    model = model_from_pretrained(args.weights, name=args.model, num_classes=num_classes, **choice, **options)
    if args.outputs == "features" and not isinstance(model, TwinsClassifier):
        raise InputError(f"{args.weights}: holds no classifier: --outputs must be maps")
    return model


def size(text: str) -> int | tuple[int, int]:
    """Reads N or HxW."""
    height, by, width = text.partition("x")
    return (int(height), int(width)) if by else int(height)


def _described(array: dict[str, Any]) -> str:
    return f"{array['dtype']} [{', '.join(map(str, array['shape']))}]"


if __name__ == "__main__":
    sys.exit(main())
