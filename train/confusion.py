"""The table of a confusion matrix that every report has beside its page."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from twins_jax.files import write_text


def write_confusion(path: Path, class_names: Sequence[str], confusion: np.ndarray) -> None:
    """Writes a CSV file with a row for each true class and a column for each predicted one, complete or not at all.

    Args:
        path: of the file.
        class_names: K, as UTF-8 holds them.
        confusion: integers [K, K], true by predicted.
    """
    rows = io.StringIO()
    writer = csv.writer(rows)
    writer.writerow(["true \\ predicted", *class_names])
    writer.writerows([name, *counts] for name, counts in zip(class_names, confusion.tolist(), strict=True))
    write_text(path, rows.getvalue())
