"""Made-up data sets of images with boxes and masks, in COCO's format."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("block", "disc")
CATEGORY_IDS = (7, 3)
"""Neither from 0 nor rising, as in some files."""

SIZES = ((60, 80), (80, 60), (64, 90), (72, 72), (66, 88), (50, 70))
"""Height and width of each image; four are landscapes. The last has no annotation."""

LEARNED_IMAGES = len(SIZES) - 1
"""Images to train on: those with annotations."""


def make_image(number: int, size: tuple[int, int]) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """An image with three objects beside one another, and the label and the bitmap [H, W] of each."""
    rng = np.random.default_rng(number)
    height, width = size
    image = rng.normal(60, 15, (height, width, 3))
    y, x = np.mgrid[:height, :width]
    objects = []
    for column in range(3):
        label = int(rng.integers(2))
        room = width // 3
        across, down = int(rng.integers(12, room + 1)), int(rng.integers(12, height // 2))
        left, top = column * room + int(rng.integers(room - across + 1)), int(rng.integers(height - down + 1))
        inside = (x >= left) & (x < left + across) & (y >= top) & (y < top + down)
        if label:
            center, radius = (left + across / 2, top + down / 2), (across / 2, down / 2)
            inside &= ((x + 0.5 - center[0]) / radius[0]) ** 2 + ((y + 0.5 - center[1]) / radius[1]) ** 2 <= 1
        image[inside] = np.array([[220, 70, 50], [60, 90, 220]])[label] + rng.normal(0, 15, (int(inside.sum()), 3))
        objects.append((label, inside.astype(np.uint8)))
    return np.clip(image, 0, 255).astype(np.uint8), objects


def box_of(bitmap: np.ndarray) -> list[float]:
    """The box of a bitmap [H, W]: x, y, width and height."""
    rows, columns = (np.flatnonzero(bitmap.any(axis=axis)) for axis in (1, 0))
    return [float(v) for v in (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)]


def run_lengths(bitmap: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed RLE of a bitmap [H, W]: the lengths of runs down the columns, of zeros first."""
    pixels = bitmap.T.reshape(-1)
    edges = np.flatnonzero(np.diff(pixels)) + 1
    counts = np.diff([0, *edges, pixels.size]).tolist()
    return {"size": [*bitmap.shape], "counts": [0, *counts] if pixels[0] else counts}


def make_content(split: str) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The annotations of a split and its images; blocks are polygons, discs are RLE.

    Beside the objects there are, on the first image, a crowd; on the second a box of half a pixel; on the third an
    object that reaches beyond the image. The first two are not learned.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    pixels = []

    def annotate(label: int, box: list[float], area: float, segmentation: Any, crowd: int = 0) -> None:
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": images[-1]["id"],
                "category_id": CATEGORY_IDS[label],
                "bbox": box,
                "area": area,
                "iscrowd": crowd,
                "segmentation": segmentation,
            }
        )

    for row, (height, width) in enumerate(SIZES):
        image, objects = make_image(row + (100 if split == "val" else 0), (height, width))
        pixels.append(image)
        images.append({"id": 10 + row, "file_name": f"{row}.png", "height": height, "width": width})
        if row == len(SIZES) - 1:
            continue
        for label, bitmap in objects:
            x, y, w, h = box = box_of(bitmap)
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotate(label, box, float(bitmap.sum()), run_lengths(bitmap) if label else [polygon])
        if row == 0:
            crowd = np.zeros((height, width), np.uint8)
            crowd[-5:, :20] = 1
            annotate(0, [0.0, height - 5.0, 20.0, 5.0], 100.0, run_lengths(crowd), crowd=1)
        if row == 1:
            annotate(1, [5.0, 5.0, 0.5, 4.0], 2.0, [[5.0, 5.0, 5.5, 5.0, 5.5, 9.0]])
        if row == 2:
            x, y = width - 6.0, 2.0
            annotate(0, [x, y, 8.0, 5.0], 40.0, [[x, y, x + 8, y, x + 8, y + 5, x, y + 5]])
    categories = [{"id": key, "name": name} for key, name in zip(CATEGORY_IDS, CLASSES, strict=True)]
    return {"images": images, "categories": categories, "annotations": annotations}, pixels


def make_folder(root: Path, *, released: bool = False) -> Path:
    """A user's folder: images/{train,val} and annotations/{train,val}.json; or COCO 2017's, as it is released."""
    for split in ("train", "val"):
        content, pixels = make_content(split)
        images = root / (f"{split}2017" if released else f"images/{split}")
        images.mkdir(parents=True)
        for entry, image in zip(content["images"], pixels, strict=True):
            Image.fromarray(image).save(images / entry["file_name"])
        (root / "annotations").mkdir(exist_ok=True)
        name = f"instances_{split}2017.json" if released else f"{split}.json"
        (root / "annotations" / name).write_text(json.dumps(content))
    return root


ARGUMENTS = (
    *("--data.shorter", "64", "--data.longer", "96", "--data.threads", "2", "--data.workers", "0"),
    *("--batch_size", "2", "--eval_batch_size", "2", "--log_every_steps", "1", "--distributed.mode", "off"),
)
"""Of a short run: batches of training are of 64 x 96 pixels."""
