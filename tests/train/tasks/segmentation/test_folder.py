import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.paths import SHARED_DATA
from tests.support.segmentation import CLASSES, SIZES, make_folder
from train.tasks.segmentation.config import SegmentationDataConfig
from train.tasks.segmentation.sources import SegmentationSource, open_source
from train.tasks.segmentation.transforms import Decode
from twins_jax.errors import InputError

DUBAI = SHARED_DATA / "dubai_aerial"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data")


def source(root: Path, split: Any = "train", **settings: Any) -> SegmentationSource:
    return open_source(SegmentationDataConfig(dir=str(root), **settings), split)


def test_images_with_their_masks(root: Path) -> None:
    first = root / "images" / "train" / "0.png"
    Image.open(first).save(root / "images" / "train" / "a.b.JPG", "JPEG")
    first.unlink()
    (root / "masks" / "train" / "0.png").rename(root / "masks" / "train" / "a.b.PNG")
    found = pickle.loads(pickle.dumps(source(root)))  # as worker processes get it
    assert (len(found), found.class_names) == (6, CLASSES)
    names = [(Path(found[i]["name"]).name, Path(found[i]["mask_name"]).name) for i in range(6)]
    assert names == [*((f"{i}.png", f"{i}.png") for i in range(1, 6)), ("a.b.JPG", "a.b.PNG")]
    record = found[2]
    assert record["image"] == (root / "images" / "train" / "3.png").read_bytes()
    assert record["mask"] == (root / "masks" / "train" / "3.png").read_bytes()
    assert Path(source(root, "eval")[0]["name"]).parent.name == "val"


def test_sizes_are_those_of_the_headers(root: Path) -> None:
    path = root / "images" / "val" / "1.png"
    path.write_bytes(path.read_bytes()[:200])  # the pixels are not read
    found = source(root, "eval")
    assert [found.size(i) for i in range(6)] == [*SIZES]
    path.write_bytes(b"")
    assert found.size(1) == SIZES[1]  # is read once
    with pytest.raises(InputError, match=r"val/1\.png: not a readable image: the file is empty"):
        source(root, "eval").size(1)


def test_what_is_left_out_is_counted(root: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source(root)
    (root / "masks" / "train" / "unseen.png").write_bytes(b"")
    (root / "images" / "train" / ".hidden.png").write_bytes(b"")
    (root / "images" / "train" / "notes.txt").write_bytes(b"")
    (root / "images" / "train" / "below.jpg").mkdir()
    with pytest.warns(UserWarning, match=r"images/train: entries left out: 4, the first .*\.hidden\.png \(hidden\)"):
        assert len(source(root)) == 6


def classes(text: str) -> Callable[[Path], object]:
    return lambda root: (root / "classes.json").write_text(text)


def repeated(root: Path) -> None:
    (root / "images" / "train" / "4.jpg").write_bytes(b"")


def emptied(root: Path) -> None:
    for path in (root / "images" / "train").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "classes.json").unlink(), "classes.json: cannot be read: No such file or directory"),
        (classes("[1"), "classes.json: is no JSON: "),
        (classes("[" * 100_000), "classes.json: is no JSON: "),
        (classes('{"a": 0}'), "classes.json: must hold a list of the classes' names; holds dict"),
        (classes('["a", 3]'), "classes.json: holds 3; each class must have a name"),
        (classes('["a", " "]'), 'classes.json: holds " "; each class must have a name'),
        (classes('["a", "b", "a"]'), "classes.json: holds 'a' 2 times; the classes must have distinct names"),
        (classes("[]"), "classes.json: holds 0 classes; must hold 1 to 255"),
        (classes(json.dumps([str(i) for i in range(256)])), "classes.json: holds 256 classes; must hold 1 to 255"),
        (lambda root: (root / "images" / "train").rename(root / "images" / "t"), "images/train: no such folder; "),
        (lambda root: (root / "masks").rename(root / "labels"), "masks/train: no such folder; "),
        (lambda root: (root / "masks" / "train" / "3.png").unlink(), "images/train/3.png: has no mask "),
        (repeated, "images/train: holds 4.jpg and 4.png; must hold one file of a stem"),
        (emptied, "images/train: holds no image; extensions are .jpg"),
    ],
)
def test_a_wrong_folder_is_one_line(root: Path, change: Callable[[Path], object], message: str) -> None:
    change(root)
    with pytest.raises(InputError) as raised:
        source(root)
    assert str(raised.value).startswith(f"{root}/{message}")
    assert len(str(raised.value).splitlines()) == 1


def test_a_missing_mask_is_a_damaged_example_where_those_are_skipped(root: Path) -> None:
    (root / "masks" / "train" / "3.png").unlink()
    found = source(root, on_error="skip")
    assert len(found) == 6
    with pytest.raises(InputError, match=r"masks/train/3\.png: cannot be read: No such file"):
        found[3]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none/classes\.json: cannot be read: No such file"):
        source(tmp_path / "none")


@pytest.mark.skipif(not DUBAI.exists(), reason="needs shared/data/dubai_aerial beside the project")
def test_a_real_folder_is_read_as_pil_reads_it() -> None:
    found = source(DUBAI, "eval")
    assert (len(found), len(found.class_names), len(source(DUBAI))) == (16, 5, 56)
    decode = Decode(5, reduce_zero_label=False)
    for index in range(0, 16, 5):
        example = decode.map(found[index])
        assert example["image"].shape == (*found.size(index), 3)
        with Image.open(found[index]["name"]) as image, Image.open(found[index]["mask_name"]) as mask:
            np.testing.assert_array_equal(example["image"], np.asarray(image))
            np.testing.assert_array_equal(example["label"], np.asarray(mask))
