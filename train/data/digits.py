"""scikit-learn's digits, held in memory: real images that need no download and no preparation."""

import collections
import functools
import io

import numpy as np
from PIL import Image

from twins_jax.errors import InputError

from .records import Record


class DigitsSource:
    """1,797 handwritten digits of 8x8 pixels in 10 classes (`sklearn.datasets.load_digits`).

    Gray levels 0..16 become 0..255. Within each class, in scikit-learn's order, every fifth example belongs to
    evaluation and the others to training: the splits are the same everywhere, and stratified.

    Raises:
        InputError: scikit-learn is not installed.
    """

    class_names = tuple("0123456789")

    def __init__(self, *, train: bool):
        self._split = "train" if train else "eval"
        self._images, self._labels = _load(train)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Record:
        return {
            "image": self._images[index],
            "label": self._labels[index],
            "name": f"digits {self._split}[{index}]",
        }


@functools.cache
def _load(train: bool) -> tuple[list[bytes], list[int]]:
    """The images of one split as PNG files, and their labels."""
    try:
        from sklearn.datasets import load_digits  # slow to import, and needed for this data set alone
    except ModuleNotFoundError as error:
        raise InputError("data.source: digits come with scikit-learn; install it, or the extra `train`") from error

    digits = load_digits()
    seen: collections.Counter[int] = collections.Counter()
    images, labels = [], []
    for values, label in zip(digits.images, digits.target.tolist(), strict=True):
        seen[label] += 1
        if (seen[label] % 5 != 0) == train:
            images.append(_png(np.rint(values * (255 / 16)).astype(np.uint8)))
            labels.append(label)
    return images, labels


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()
