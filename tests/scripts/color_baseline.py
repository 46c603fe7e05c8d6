"""Segments a folder without a network: its commonest class, and logistic regression on the color of each pixel.

    python tests/scripts/color_baseline.py DIR

DIR holds images/{train,val}, masks/{train,val} and classes.json, as for `train.main segment_folder`. Prints mIoU, mAcc
and aAcc on val, counted as mmseg counts them. A segmenter that is worth training beats both.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

IGNORED = 255
PIXELS = 5_000
"""Taken at random from each training image."""


def main(root: Path) -> None:
    class_names = json.loads((root / "classes.json").read_text())
    rng = np.random.default_rng(0)
    colors, labels = [], []
    for image, mask in _pairs(root, "train"):
        kept = np.flatnonzero(mask != IGNORED)
        chosen = rng.choice(kept, min(PIXELS, len(kept)), replace=False)
        colors.append(image.reshape(-1, 3)[chosen])
        labels.append(mask.reshape(-1)[chosen])
    commonest = np.bincount(np.concatenate(labels)).argmax()
    _show(
        "commonest class",
        class_names,
        _confusion(root, len(class_names), lambda pixels: np.full(len(pixels), commonest)),
    )
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(np.concatenate(colors) / 255, np.concatenate(labels))
    _show(
        "color of a pixel", class_names, _confusion(root, len(class_names), lambda pixels: model.predict(pixels / 255))
    )


def _pairs(root: Path, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for path in sorted((root / "images" / split).iterdir()):
        mask = Image.open(root / "masks" / split / f"{path.stem}.png")
        yield np.asarray(Image.open(path).convert("RGB")), np.asarray(mask)


def _confusion(root: Path, classes: int, predict: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    confusion = np.zeros((classes, classes), np.int64)
    for image, mask in _pairs(root, "val"):
        kept = mask.reshape(-1) != IGNORED
        np.add.at(confusion, (mask.reshape(-1)[kept], predict(image.reshape(-1, 3)[kept])), 1)
    return confusion


def _show(what: str, class_names: list[str], confusion: np.ndarray) -> None:
    hits, labelled, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore"):
        iou, accuracy = hits / (labelled + predicted - hits), hits / labelled
    by_class = ", ".join(f"{name} {value:.3f}" for name, value in zip(class_names, iou, strict=True))
    total = hits.sum() / labelled.sum()
    sys.stdout.write(
        f"{what}: miou {np.nanmean(iou):.4f}, macc {np.nanmean(accuracy):.4f}, aacc {total:.4f}; IoU {by_class}\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
