"""ADE20K's released layout, made up: masks of 0 (other) and 1 to 150, and the list of the classes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.images import saved
from tests.support.segmentation import SIZES, make_ade20k, make_image
from train.tasks.segmentation.ade20k import read_classes
from train.tasks.segmentation.config import SegmentationDataConfig
from train.tasks.segmentation.sources import open_source
from train.tasks.segmentation.transforms import Decode, eval_transforms
from twins_jax.errors import InputError

HEAD = "Idx\tRatio\tTrain\tVal\tName\n"


def test_the_layout(tmp_path: Path) -> None:
    config = SegmentationDataConfig(source="ade20k", dir=str(make_ade20k(tmp_path)), shorter=48, longer=96)
    train, evaluation = open_source(config, "train"), open_source(config, "eval")
    assert len(train) == len(evaluation) == len(SIZES)
    assert len(train.class_names) == 150
    assert train.class_names[:2] == ("name 1", "name 2")
    for index, size in enumerate(SIZES):
        record = evaluation[index]
        assert record["mask_name"] == str(tmp_path / "annotations" / "validation" / f"ADE_val_{index + 1:08}.png")
        example = dict(record)
        for transform in eval_transforms(config, 150):
            example = transform.map(example)  # type: ignore[union-attr, assignment]
        np.testing.assert_array_equal(example["label"], make_image(10 + index, size)[1])


def test_zero_is_ignored_and_the_others_are_one_less() -> None:
    mask = np.array([[0, 1, 2, 150, 255]], np.uint8)
    image = saved(Image.new("RGB", (5, 1)), "PNG")

    def decode(mask: np.ndarray, **options: bool) -> np.ndarray:
        record = {"image": image, "mask": saved(Image.fromarray(mask), "PNG"), "name": "a.jpg", "mask_name": "a.png"}
        return Decode(150, **options).map(record)["label"]  # type: ignore[arg-type]

    np.testing.assert_array_equal(decode(mask, reduce_zero_label=True), [[255, 0, 1, 149, 255]])
    mask[0, 3] = 151
    message = r"^a\.png: mask with class index 151; must be 0 to 150, or 255 where ignored$"
    with pytest.raises(InputError, match=message):
        decode(mask, reduce_zero_label=True)
    mask[0, 3] = 150
    with pytest.raises(InputError, match=r"^a\.png: mask with class index 150; must be 0 to 149, or 255"):
        decode(mask, reduce_zero_label=False)


def test_names_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "objectInfo150.txt"
    # Lines of the released file: spaces at the end of names and of one index; another release has a column more.
    path.write_text(HEAD + "1\t0.0231\t1906\t199\tbed \n2 \t0.0074\t709\t75\twindowpane, window \n\n")
    assert read_classes(path) == ("bed", "windowpane")
    path.write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\r\n1\t0.1\t9\t9\t1\twall\r\n")
    assert read_classes(path) == ("wall",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEAD + "1\t0.1\t9\t9\ta\n3\t0.1\t9\t9\tb\n",
            "line 3: must be class 2 with its name, separated by tabs; is '3",
        ),
        (HEAD + "1 0.1 9 9 a\n", "line 2: must be class 1 with its name"),
        (HEAD + "1\t0.1\t9\t9\t , b\n", "line 2: must be class 1 with its name"),
        (HEAD, "holds 0 classes; must hold 1 to 255"),
        (HEAD + "1\tchair\n2\tchair, seat\n", "holds 'chair' 2 times; the classes must have distinct names"),
    ],
)
def test_other_lists_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "objectInfo150.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        read_classes(path)
    assert str(raised.value).startswith(str(path))
