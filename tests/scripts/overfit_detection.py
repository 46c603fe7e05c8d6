"""Learns eight images by heart: a detector with a wrong target or a wrong decoding cannot reach a high AP.

    python tests/scripts/overfit_detection.py
    python tests/scripts/overfit_detection.py --head mask_rcnn

RetinaNet learns bccd, Mask R-CNN dsb2018_nuclei; the same images are evaluated. Further flags are those of
`python -m train.main detect_folder`. The exit code is 0 if the box AP is over 0.9 and the mask AP over 0.8.
"""

import argparse
import collections
import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support import runs
from tests.support.paths import SHARED_DATA

IMAGES = 8
ENOUGH = {"box_ap": 0.9, "mask_ap": 0.8}
MOST_OBJECTS = 40
"""Of an image that is taken."""

SETS = {"retinanet": ("bccd", 0), "mask_rcnn": ("dsb2018_nuclei", 16)}
"""Data set of each head, and the least side of an object in an image that is taken, the root of its box's area. Most
nuclei are smaller: no anchor, the smallest of which have 32 pixels, fits them at the size that two cores can train."""

FLAGS = (
    *("--model.name", "twins_svt_tiny", "--model.drop_path_rate", "0", "--data.flip", "0"),
    *("--batch_size", "2", "--eval_batch_size", "4", "--box_samples", "64", "--data.threads", "2"),
    *("--optim.learning_rate", "0.0005", "--optim.weight_decay", "0", "--optim.warmup_steps", "50"),
    *("--log_every_steps", "20", "--checkpoint.every_steps", "100000", "--report"),
)


FLAGS_OF = {
    "retinanet": ("--data.shorter", "192", "--data.longer", "256", "--steps", "400", "--eval_every_steps", "200"),
    "mask_rcnn": ("--data.shorter", "256", "--data.longer", "256", "--steps", "800", "--eval_every_steps", "400"),
}


def make_folder(source: Path, root: Path, least_side: float) -> Path:
    """The first images of a set with some objects, none of them smaller, to learn and to evaluate."""
    content = json.loads((source / "annotations" / "train.json").read_text())
    sides: dict[int, list[float]] = collections.defaultdict(list)
    for annotation in content["annotations"]:
        sides[annotation["image_id"]].append(math.prod(annotation["bbox"][2:]) ** 0.5)
    taken = [i for i, own in sides.items() if len(own) <= MOST_OBJECTS and min(own) >= least_side]
    images = [image for image in content["images"] if image["id"] in taken][:IMAGES]
    ids = {image["id"] for image in images}
    content |= {
        "images": images,
        "annotations": [each for each in content["annotations"] if each["image_id"] in ids],
    }
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))
        (root / "images" / split).mkdir(parents=True)
        for image in images:
            shutil.copy(source / "images" / "train" / image["file_name"], root / "images" / split)
    return root


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--head", choices=SETS, default="retinanet")
    parser.add_argument("--out", type=Path, help="folder of the run, which is new; a temporary one without it")
    options, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        name, least_side = SETS[options.head]
        root = make_folder(SHARED_DATA / name, Path(folder) / "data", least_side)
        workdir = options.out or Path(folder) / "run"
        flags = [*FLAGS, *FLAGS_OF[options.head], "--data.dir", str(root), "--workdir", str(workdir)]
        subprocess.run([*runs.TRAIN, "detect_folder", "--head", options.head, *flags, *more], check=True)
        evaluations = [line for line in runs.metrics(workdir) if line["split"] == "eval"]
    return int(any(evaluations[-1].get(name, 1.0) <= enough for name, enough in ENOUGH.items()))


if __name__ == "__main__":
    sys.exit(main())
