"""ImageNet's two tar files in their real layout, with made-up images: `python tests/support/imagenet.py DIR`."""

import io
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475", "n01496331", "n01498041", "n01514668")


def write_tars(folder: Path, train: Mapping[str, Sequence[bytes]], validation: Mapping[int, bytes]) -> None:
    """Writes JPEGs: those of training by class, those of validation by the number in their name."""
    folder.mkdir(parents=True)
    classes = {
        f"{name}.tar": _tar({f"{name}_{i}.JPEG": image for i, image in enumerate(images)})
        for name, images in train.items()
    }
    (folder / "ILSVRC2012_img_train.tar").write_bytes(_tar(classes))
    named = {f"ILSVRC2012_val_{number:08}.JPEG": image for number, image in validation.items()}
    (folder / "ILSVRC2012_img_val.tar").write_bytes(_tar(named))


def jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=100)
    return file.getvalue()


def _tar(files: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as writer:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            writer.addfile(member, io.BytesIO(content))
    return archive.getvalue()


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    images = iter([jpeg(rng.integers(256, size=(250, 300, 3), dtype=np.uint8)) for _ in range(96)])
    write_tars(
        Path(sys.argv[1]),
        {name: [next(images) for _ in range(8)] for name in CLASSES},
        {number: next(images) for number in range(1, 33)},
    )
