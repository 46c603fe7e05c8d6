"""Writes a model to a file, and checks the file against the model before it appears."""

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from twins_jax.errors import InputError, require
from twins_jax.export import onnx_file, stablehlo_file
from twins_jax.export.comparison import BOUND, Comparison, compare
from twins_jax.export.manifest import make_manifest
from twins_jax.export.program import make_program
from twins_jax.extra import check_installed
from twins_jax.files import staged
from twins_jax.model import Model
from twins_jax.paths import target_path

JAX, ONNX = ".jax", ".onnx"


class ExportError(InputError):
    """A file does not compute what its model computes, and was not kept."""


def export_model(
    model: Model,
    path: str | os.PathLike[str],
    *,
    image_size: int | tuple[int, int] | None = None,
    batch_size: int | None = None,
    normalize: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a model with its weights to a file that runs without this library.

    The file is run on random images before it takes its name, and its outputs are compared with the model's. The
    largest difference that is allowed is four times the model's own rounding error (see `comparison.BOUND`).

    A file of `jax.export` (.jax) holds StableHLO for the platforms that `ops.PLATFORMS` lists, and runs wherever the
    packages jax and flatbuffers are installed: `jax.export.deserialize(Path(path).read_bytes()).call(images)`. JAX
    reads it for six months at least. An ONNX file (.onnx) has the input "images", and needs the extra `onnx` to be
    written.

    Both take images [B, H, W, in_channels] and return what the model returns, in its `dtype`: "logits" or "features" of
    a classifier, the maps "c2" to "c5" of a backbone. Matrix products have the platform's default precision, as in a
    model.

    Args:
        model: a classifier or a backbone.
        path: ends in .jax or .onnx.
        image_size: height and width of the images, one number for both; None: that of the model's preprocessing.
        batch_size: the only batch that the file takes; None: any.
        normalize: the images are uint8 RGB pixels, which the file normalizes with the mean and standard deviation of
            the model's preprocessing. False: they are float32, and normalized already.
        overwrite: replace a file that exists.

    Returns:
        The manifest: a JSON object in the form of timm's `config.json`, with the further keys "input", "outputs",
        "check" and "versions". It is written to a file beside a .jax file, of its name and ".json", and to the metadata
        "twins_jax" of an .onnx file.

    Raises:
        InputError: (a ValueError) an argument is not what it must be, a package is missing, the file exists, or it
            cannot be written.
        ExportError: (an InputError) the file differs from the model; it is removed.
    """
    require("overwrite", overwrite, isinstance(overwrite, bool), "True or False")
    target = checked_target(path, overwrite=overwrite)
    program = make_program(model, image_size, batch_size, normalize)
    file = onnx_file if target.endswith(ONNX) else stablehlo_file
    with contextlib.ExitStack() as stack:
        written = stack.enter_context(staged(target))
        of_format = file.write(program, written)
        comparisons = compare(program, file.load(written))
        for comparison in comparisons:
            _require_same(target, comparison)
        manifest = make_manifest(program, comparisons, file.PACKAGES, **of_format)
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        if target.endswith(ONNX):
            onnx_file.add_manifest(written, text)
        else:  # the inner of the two takes its name first: a file is never seen without its manifest
            beside = stack.enter_context(staged(manifest_path(target)))
            Path(beside).write_text(text, encoding="utf-8")
    return manifest


def _require_same(target: str, found: Comparison) -> None:
    if not math.isfinite(found.rounding):
        raise ExportError(
            f"{target}: not written: the model's {found.output} are not all finite for random images, and cannot be "
            "compared with the file's"
        )
    if not found.holds:
        raise ExportError(
            f"{target}: not written: its {found.output} differ from the model's by {found.difference:.1e} of the "
            f"largest; {found.bound:.1e} is allowed, {BOUND:g} times the model's own rounding error"
        )


def checked_target(path: str | os.PathLike[str], *, overwrite: bool) -> str:
    """Returns the path of the file to write, after all checks that need no model.

    Raises:
        InputError: it has another ending or cannot be written, or the packages of its format are not installed.
    """
    from twins_jax.port.write import check_target

    target = str(target_path("path", path, "file"))
    if Path(target).suffix not in (JAX, ONNX):
        raise InputError(f"{target}: must end in {JAX} (StableHLO, for JAX) or {ONNX}")
    check_target(target, overwrite=overwrite)
    if target.endswith(ONNX):
        check_installed(*onnx_file.PACKAGES, purpose="exporting to ONNX", extra="onnx")
    else:
        check_target(str(target_path("path", manifest_path(target), "file")), overwrite=overwrite)
    return target


def manifest_path(path: str) -> str:
    """Returns the place of a .jax file's manifest: beside it, because `jax.export` has none for it."""
    return f"{path}.json"
