"""scikit-learn's digits as a TFDS data set: real images that need no download."""

import collections
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


class TwinsDigits(tfds.core.GeneratorBasedBuilder):
    """1,797 handwritten digits of 8x8 pixels in 10 classes (`sklearn.datasets.load_digits`).

    Grey levels 0..16 become 0..255. Within each class, in scikit-learn's order, every fifth example belongs to the
    split "test" and the others to "train", so the splits are the same everywhere and stratified.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        )
        # Without TFDS's own shuffle the records keep scikit-learn's order.
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing to download
        return {"train": self._generate_examples(test=False), "test": self._generate_examples(test=True)}

    def _generate_examples(self, test: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits  # slow to import, and needed only once

        digits = load_digits()
        seen: collections.Counter[int] = collections.Counter()
        for index, (values, label) in enumerate(zip(digits.images, digits.target.tolist(), strict=True)):
            seen[label] += 1
            if (seen[label] % 5 == 0) == test:
                pixels = np.rint(values * (255 / 16)).astype(np.uint8)
                # As a PIL image: TFDS would need TensorFlow to encode an array.
                yield index, {"image": Image.fromarray(pixels), "label": label}


def prepare_digits(cache_dir: Path) -> Path:
    """Returns the folder of the prepared data set under `cache_dir`, after writing it if it is not there.

    TFDS writes to a temporary folder and renames it at the end, so an interrupted run leaves nothing that is taken
    for the data set.
    """
    directory = cache_dir / TwinsDigits.name / str(TwinsDigits.VERSION)
    if not directory.exists():
        try:
            TwinsDigits(data_dir=str(cache_dir)).download_and_prepare(file_format="array_record")
        except OSError:
            if not directory.exists():  # else another process was first to rename its copy, which holds the same
                raise
    return directory
