"""Draws a run's metrics, or makes a table of them (needs the extra `plot`).

`python -m train.plot WORKDIR/metrics.jsonl curve.svg`, or `metrics.csv`.
"""

import csv
import dataclasses
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twins_jax.ending import command_line
from twins_jax.errors import InputError
from twins_jax.extra import check_installed
from twins_jax.files import staged, write_text
from twins_jax.paths import source_path, target_path

TITLES = {"top1": "top-1", "map": "mAP", "miou": "mIoU", "box_ap": "box AP", "mask_ap": "mask AP"}
"""Figures of an evaluation that are drawn, and their names on the axis."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Draws training loss and evaluation accuracy over epochs, or writes all figures of a run as a table."""

    metrics: str
    """A run's metrics.jsonl."""

    out: str
    """The file to write; its ending decides the format: .svg, .png, .pdf; .csv for the table."""


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
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not the metrics.jsonl of a run: {error}") from error
    if not training:
        raise InputError(f"{path}: holds no line of training yet")
    return training, evaluations


def draw(metrics: Path, picture: Path) -> None:
    """Draws the loss, and the main figures of the evaluations, over epochs.

    Raises:
        InputError: the metrics cannot be read, or the picture's format is not known or it cannot be written.
    """
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "twins_jax"  # the same run gives the same file
    from matplotlib import pyplot as plt

    training, evaluations = read_metrics(metrics)
    names = [name for name in TITLES if any(name in line for line in evaluations)] or ["top1"]
    figure, accuracy = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, style in zip(names, ("o-", "s--"), strict=False):
        lines = [line for line in evaluations if name in line]
        epochs, values = [line["epoch"] for line in lines], [100 * line[name] for line in lines]
        accuracy.plot(epochs, values, style, color="tab:blue", label=TITLES[name])
    accuracy.set_xlabel("epoch")
    accuracy.set_ylabel(f"evaluation {' and '.join(TITLES[name] for name in names)} (%)", color="tab:blue")
    if len(names) > 1:
        accuracy.legend(loc="center right")
    accuracy.grid(alpha=0.3)
    loss = accuracy.twinx()
    loss.plot([t["epoch"] for t in training], [t["loss"] for t in training], color="tab:orange", linewidth=1)
    loss.set_ylabel("training loss", color="tab:orange")
    kind = picture.suffix.removeprefix(".").lower()
    if kind not in figure.canvas.get_supported_filetypes():
        raise InputError(f"{picture}: must end in .svg, .png, .pdf or .csv")
    with staged(picture) as aside:
        figure.savefig(aside, format=kind, metadata={"Date": None} if kind == "svg" else None)
    plt.close(figure)


def write_table(metrics: Path, table: Path) -> None:
    """Writes a row for each step, with the columns "step", "epoch" and "SPLIT/NAME"; empty where a step has no figure.

    Raises:
        InputError: the metrics cannot be read, or the table cannot be written.
    """
    training, evaluations = read_metrics(metrics)
    rows: dict[int, dict[str, Any]] = {}
    columns: dict[str, None] = {}
    for split, lines in (("train", training), ("eval", evaluations)):
        for line in lines:
            figures = {f"{split}/{name}": line[name] for name in line if name not in ("step", "split", "epoch")}
            rows.setdefault(line["step"], {"step": line["step"], "epoch": line["epoch"]}).update(figures)
            columns |= dict.fromkeys(figures)
    text = io.StringIO()
    writer = csv.DictWriter(text, ["step", "epoch", *columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows.values())
    write_text(table, text.getvalue())


@command_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs and returns the exit code: 0, or 2 for input that the caller can correct.

    The arguments are the command line's where none are given.
    """
    check_installed("tyro", purpose="drawing", extra="plot")
    import tyro

    from .flags import read_flags

    positional = tyro.conf.PositionalRequiredArgs[Arguments]
    words = sys.argv[1:] if arguments is None else arguments
    config = read_flags(positional, words, prog=f"python -m {__package__}.plot")
    metrics, out = source_path("metrics", config.metrics), target_path("out", config.out, "file")
    if out.suffix.lower() == ".csv":
        write_table(metrics, out)
        return 0
    check_installed("matplotlib", purpose="drawing", extra="plot")
    draw(metrics, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
