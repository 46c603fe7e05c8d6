"""Made-up data sets of images with masks."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("dark", "red", "blue")
SIZES = ((40, 60), (60, 40), (45, 61), (96, 70), (48, 48), (41, 66))
"""Height and width of each image: evaluated at a shorter side of 48, padded to multiples of 32, they are two groups."""


def make_image(number: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """An image of colored rectangles and its mask of the three classes, with some pixels ignored."""
    rng = np.random.default_rng(number)
    height, width = size
    mask = np.zeros(size, np.uint8)
    for label in (1, 2, 1, 2):
        top, left = rng.integers(0, height - 8), rng.integers(0, width - 8)
        mask[top : top + rng.integers(8, 30), left : left + rng.integers(8, 30)] = label
    colors = np.array([[40, 40, 40], [200, 60, 50], [50, 70, 210]])
    image = np.clip(colors[mask] + rng.normal(0, 20, (*size, 3)), 0, 255).astype(np.uint8)
    mask[rng.random(size) < 0.1] = 255
    return image, mask


def make_folder(root: Path) -> Path:
    """images/{train,val}, masks/{train,val} and classes.json: six images to train, six to evaluate."""
    for split, first in (("train", 0), ("val", 10)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for number, size in enumerate(SIZES):
            image, mask = make_image(first + number, size)
            Image.fromarray(image).save(root / "images" / split / f"{number}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"{number}.png")
    (root / "classes.json").write_text(json.dumps(CLASSES))
    return root


def make_ade20k(root: Path, names: int = 150) -> Path:
    """ADEChallengeData2016 as released, of the same images: label 0 is other, and is ignored."""
    for split, first in (("training", 0), ("validation", 10)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for number, size in enumerate(SIZES):
            image, mask = make_image(first + number, size)
            name = f"ADE_{'train' if first == 0 else 'val'}_{number + 1:08}"
            Image.fromarray(image).save(root / "images" / split / f"{name}.jpg")
            Image.fromarray(np.where(mask == 255, 0, mask + 1).astype(np.uint8)).save(
                root / "annotations" / split / f"{name}.png"
            )
    rows = [f"{i}\t0.1\t10\t1\tname {i}, other" for i in range(1, names + 1)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")
    return root


ARGUMENTS = (
    *("--data.crop_size", "64", "--data.shorter", "48", "--data.longer", "96", "--data.threads", "2"),
    *("--data.workers", "0"),
    *("--batch_size", "4", "--eval_batch_size", "2", "--log_every_steps", "1", "--distributed.mode", "off"),
)
"""Of a short run."""
