"""Draws a run's metrics: `python -m train.plot WORKDIR/metrics.jsonl curve.svg` (needs the extra `plot`)."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from twins_jax.errors import InputError

from .extra import check_installed


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Draws training loss and evaluation accuracy over epochs."""

    metrics: Path
    """A run's metrics.jsonl."""

    picture: Path
    """The file to write; its ending decides the format: .svg, .png, .pdf."""


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Reads the training and the evaluation lines of a metrics.jsonl, each with an "epoch".

    Raises:
        InputError: the file cannot be read or holds no line of training.
    """
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        training = [line for line in lines if line["split"] == "train"]
        epochs = {line["step"]: line["epoch"] for line in training}
        evaluations = [{**line, "epoch": epochs[line["step"]]} for line in lines if line["split"] == "eval"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the metrics.jsonl of a run: {error}") from error
    if not training:
        raise InputError(f"{path}: holds no line of training yet")
    return training, evaluations


def draw(metrics: Path, picture: Path) -> None:
    """Draws the curves of a run.

    Raises:
        InputError: the metrics cannot be read, or the picture's format is not known.
    """
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "twins_jax"  # the same run gives the same file
    from matplotlib import pyplot as plt

    training, evaluations = read_metrics(metrics)
    figure, accuracy = plt.subplots(figsize=(7, 4), layout="constrained")
    accuracy.plot([e["epoch"] for e in evaluations], [100 * e["top1"] for e in evaluations], "o-", color="tab:blue")
    accuracy.set_xlabel("epoch")
    accuracy.set_ylabel("evaluation top-1 (%)", color="tab:blue")
    accuracy.grid(alpha=0.3)
    loss = accuracy.twinx()
    loss.plot([t["epoch"] for t in training], [t["loss"] for t in training], color="tab:orange", linewidth=1)
    loss.set_ylabel("training loss", color="tab:orange")
    if picture.suffix.removeprefix(".") not in figure.canvas.get_supported_filetypes():
        raise InputError(f"{picture}: must end in .svg, .png or .pdf")
    figure.savefig(picture, metadata={"Date": None} if picture.suffix == ".svg" else None)
    plt.close(figure)


def main() -> int:
    """Runs and returns the exit code: 0, or 2 for input that the caller can correct."""
    try:
        check_installed("matplotlib", "tyro", purpose="drawing", extra="plot")
        import tyro

        positional = tyro.conf.PositionalRequiredArgs
        arguments = tyro.cli(Arguments, prog=f"python -m {__package__}.plot", config=(positional,))
        draw(arguments.metrics, arguments.picture)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
