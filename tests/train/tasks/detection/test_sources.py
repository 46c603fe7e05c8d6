import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.detection import CLASSES, LEARNED_IMAGES, SIZES, make_content, make_folder
from tests.support.paths import SHARED_DATA
from train.tasks.detection.config import DetectionDataConfig
from train.tasks.detection.sources import DetectionSource, dataset_info, open_source
from train.tasks.detection.transforms import Decode
from twins_jax.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:.*annotations that training leaves out")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data")


def source(root: Path, split: Any = "train", *, masks: bool = True, **settings: Any) -> DetectionSource:
    return open_source(DetectionDataConfig(dir=str(root), **settings), split, masks=masks)


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("released", [False, True])
def test_images_with_their_objects(tmp_path: Path, released: bool) -> None:
    root = make_folder(tmp_path, released=released)
    settings = {"source": "coco"} if released else {}
    train, evaluation = source(root, **settings), source(root, "eval", **settings)
    assert (len(train), len(evaluation), train.class_names) == (LEARNED_IMAGES, len(SIZES), CLASSES)
    content, pixels = make_content("train")
    for index in range(LEARNED_IMAGES):
        record = train[index]
        folder = root / ("train2017" if released else "images/train")
        assert record["name"] == str(folder / f"{index}.png")
        with Image.open(record["name"]) as image:
            np.testing.assert_array_equal(np.asarray(image), pixels[index])
        assert record["image"] == (folder / f"{index}.png").read_bytes()
        assert (record["row"], record["size"]) == (index, SIZES[index])
        expected = [e for e in content["annotations"] if e["image_id"] == 10 + index and not e["iscrowd"]]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (e["bbox"] for e in expected) if w >= 1]
        assert (record["boxes"].dtype, record["labels"].dtype) == (np.float32, np.int32)
        np.testing.assert_array_equal(record["boxes"], boxes)
        assert len(record["segmentations"]) == len(record["labels"]) == len(boxes)
    assert train.boxes_an_image == 4
    assert evaluation[5]["boxes"].shape == (0, 4)
    np.testing.assert_array_equal(evaluation.sizes, SIZES)
    info = dataset_info(train, evaluation)
    assert (info.num_classes, info.train_examples, info.eval_examples) == (2, LEARNED_IMAGES, len(SIZES))


def test_images_that_are_not_learned(root: Path) -> None:
    """Those without annotations or with a side under 32; a crowd alone leaves an example without boxes."""

    def change(content: dict[str, Any]) -> None:
        content["images"][0]["height"] = 31
        content["annotations"] = [e for e in content["annotations"] if e["image_id"] != 10]
        for entry in content["annotations"]:
            entry["iscrowd"] = int(entry["image_id"] == 12)
            if entry["image_id"] == 13:
                entry["image_id"] = 10
                entry["bbox"], entry["segmentation"] = [0, 0, 9, 9], [[0, 0, 9, 0, 9, 9]]

    rewrite(root / "annotations" / "train.json", change)
    found = source(root)
    assert [found[index]["row"] for index in range(len(found))] == [1, 2, 4]
    assert [len(found[index]["boxes"]) for index in range(len(found))] == [3, 0, 3]
    assert found.boxes_an_image == 3


@pytest.mark.filterwarnings("error")
def test_annotations_that_are_left_out_are_counted(root: Path) -> None:
    path = root / "annotations" / "train.json"
    with pytest.warns(UserWarning, match=r"train\.json: annotations that training leaves out: 2 of 18 .* id 4$"):
        source(root)
    rewrite(path, lambda c: c.update(annotations=[e for e in c["annotations"] if e["id"] not in (4, 8)]))
    source(root)
    with pytest.warns(UserWarning, match=r"beyond the first 2 of their image .*: 6; one image has 4$"):
        found = source(root, max_boxes=2)
    assert found.boxes_an_image == 2
    np.testing.assert_array_equal(found[2]["boxes"], source(root)[2]["boxes"][:2])


def without(path: str) -> Callable[[Path], object]:
    return lambda root: (root / path).unlink()


def renamed(path: str) -> Callable[[Path], object]:
    return lambda root: (root / path).rename(root / "elsewhere")


def annotations(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return lambda root: rewrite(root / "annotations" / "train.json", change)


def unit_boxes(content: dict[str, Any]) -> None:
    for entry in content["annotations"]:
        entry["bbox"] = [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("annotations/train.json"), "annotations/train.json: cannot be read: No such file or directory"),
        (renamed("images/train"), "images/train: no such folder; "),
        (without("images/train/3.png"), "images/train/3.png: no such file, which "),
        (
            annotations(lambda content: content["images"][1].update(file_name="below/1.png")),
            "images/train/below/1.png: no such file, which ",
        ),
        (
            annotations(lambda content: content["images"][1].update(file_name="x/" * 3000 + "1.png")),
            "images/train/x/x/x/",
        ),
        (annotations(lambda content: content.update(annotations=[])), "annotations/train.json: has no image to learn"),
        (annotations(unit_boxes), "annotations/train.json: has no object to learn: its 18 annotations are crowds or"),
    ],
)
def test_a_wrong_folder_is_one_line(root: Path, change: Callable[[Path], object], message: str) -> None:
    change(root)
    with pytest.raises(InputError) as raised:
        source(root)
    assert str(raised.value).startswith(f"{root}/{message}")
    assert len(str(raised.value).splitlines()) == 1


def crowds(content: dict[str, Any]) -> None:
    for entry in content["annotations"]:
        entry["iscrowd"] = 1


@pytest.mark.parametrize("change", [crowds, lambda content: content.update(annotations=[])])
def test_evaluation_without_an_object_is_one_line(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    rewrite(root / "annotations" / "val.json", change)
    with pytest.raises(
        InputError, match=r"annotations/val\.json: has no object to evaluate; must hold annotations oth"
    ):
        open_source(DetectionDataConfig(dir=str(root)), "eval", masks=False)


def test_images_in_folders_below(root: Path) -> None:
    (root / "images" / "train" / "below").mkdir()
    (root / "images" / "train" / "1.png").rename(root / "images" / "train" / "below" / "1.png")
    rewrite(root / "annotations" / "train.json", lambda c: c["images"][1].update(file_name="below/1.png"))
    assert Path(source(root)[1]["name"]).parent.name == "below"


def test_a_missing_image_is_a_damaged_example_where_those_are_skipped(root: Path) -> None:
    (root / "images" / "train" / "3.png").unlink()
    found = source(root, on_error="skip")
    with pytest.raises(InputError, match=r"images/train/3\.png: cannot be read: No such file"):
        found[3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["categories"].reverse(), "(3, 'disc'), must be (7, 'block')"),
        (lambda content: content["categories"].append({"id": 9, "name": "x"}), "3, must be 2 of them"),
        (lambda content: content["categories"][1].update(name="disk"), "(3, 'disk'), must be (3, 'disc')"),
    ],
)
def test_both_files_have_the_same_categories(
    root: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    rewrite(root / "annotations" / "val.json", change)
    with pytest.raises(InputError) as raised:
        dataset_info(source(root), source(root, "eval"))
    assert str(raised.value).startswith(f"{root}/annotations/val.json: must hold the categories of ")
    assert str(raised.value).endswith(message)


@pytest.mark.parametrize(
    ("name", "masks", "images", "classes", "boxes"),
    [("bccd", False, (292, 72), 3, 30), ("dsb2018_nuclei", True, (220, 60), 1, 125)],
)
def test_real_folders(name: str, masks: bool, images: tuple[int, int], classes: int, boxes: int) -> None:
    """All images have the size that the annotations say, and masks of an eighth of them the boxes."""
    root = SHARED_DATA / name
    if not root.exists():
        pytest.skip(f"needs shared/data/{name} beside the project")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        splits = [source(root, split, masks=masks, max_boxes=300) for split in ("train", "eval")]
    assert (*map(len, splits),) == images
    assert dataset_info(*splits).num_classes == classes
    assert splits[0].boxes_an_image == boxes
    for found in splits:
        for index in range(len(found)):
            drawn = masks and index % 8 == 0
            example = Decode(masks=drawn).map(found[index])
            assert example["image"].shape[:2] == tuple(found.sizes[index])
            if drawn:
                bitmaps = example["bitmaps"]
                ends = [(np.flatnonzero(b.any(axis=0)), np.flatnonzero(b.any(axis=1))) for b in bitmaps]
                boxes_of = [[x[0], y[0], x[-1] + 1, y[-1] + 1] for x, y in ends]
                np.testing.assert_array_equal(boxes_of, example["boxes"])
