"""Learns eight images by heart: a detector with a wrong target or a wrong decoding cannot reach a box AP of 0.9.

    python tests/scripts/overfit_detection.py --head retinanet --steps 1000

RetinaNet learns bccd, Mask R-CNN dsb2018_nuclei; the same images are evaluated. Further flags are those of
`python -m train.main detect_folder`. The exit code is 0 if the AP is over 0.9.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support import runs
from tests.support.paths import SHARED_DATA

IMAGES = 8
ENOUGH = 0.9
MOST_OBJECTS = 40
"""Of an image that is taken."""

SETS = {"retinanet": "bccd", "mask_rcnn": "dsb2018_nuclei"}

FLAGS = (
    *("--model.name", "twins_svt_tiny", "--model.drop_path_rate", "0", "--data.flip", "0"),
    *("--data.shorter", "256", "--data.longer", "352", "--data.threads", "2"),
    *("--batch_size", "4", "--eval_batch_size", "4", "--optim.learning_rate", "0.0005", "--optim.weight_decay", "0"),
    *("--log_every_steps", "20", "--eval_every_steps", "200", "--checkpoint.every_steps", "100000", "--report"),
)


def make_folder(source: Path, root: Path) -> Path:
    """The first images of a set with some objects, to learn and to evaluate."""
    content = json.loads((source / "annotations" / "train.json").read_text())
    counts: dict[int, int] = {}
    for annotation in content["annotations"]:
        counts[annotation["image_id"]] = counts.get(annotation["image_id"], 0) + 1
    images = [image for image in content["images"] if 0 < counts.get(image["id"], 0) <= MOST_OBJECTS][:IMAGES]
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
    parser.add_argument("--steps", default="1000")
    parser.add_argument("--out", type=Path, help="folder of the run, which is new; a temporary one without it")
    options, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        root = make_folder(SHARED_DATA / SETS[options.head], Path(folder) / "data")
        workdir = options.out or Path(folder) / "run"
        flags = ["--data.dir", str(root), "--workdir", str(workdir), "--head", options.head, "--steps", options.steps]
        subprocess.run([*runs.TRAIN, "detect_folder", *FLAGS, *flags, *more], check=True)
        evaluations = [line for line in runs.metrics(workdir) if line["split"] == "eval"]
    return int(evaluations[-1]["box_ap"] <= ENOUGH)


if __name__ == "__main__":
    sys.exit(main())
