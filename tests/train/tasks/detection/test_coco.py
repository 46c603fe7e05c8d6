"""Files of annotations, against what mmdet and pycocotools make of them."""

import contextlib
import copy
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.support.detection import CATEGORY_IDS, CLASSES, SIZES, make_content
from tests.support.detection import run_lengths as uncompressed
from train.tasks.detection.coco import CocoFile, read_coco
from train.tasks.detection.masks import draw, pack_bits, run_lengths, unpack_bits
from twins_jax.errors import InputError


def read(path: Path, content: Any, *, masks: bool = True) -> CocoFile:
    path.write_text(json.dumps(content))
    return read_coco(path, masks=masks)


def test_the_content_by_image(tmp_path: Path) -> None:
    content, _ = make_content("train")
    given = copy.deepcopy(content)
    content["annotations"] = content["annotations"][::-1]  # those of an image need not be together
    found = pickle.loads(pickle.dumps(read(tmp_path / "a.json", content)))  # as worker processes get it
    assert (found.class_names, found.category_ids.tolist()) == (CLASSES, [*CATEGORY_IDS])
    assert found.image_ids.tolist() == [10, 11, 12, 13, 14, 15]
    assert [*map(tuple, found.image_sizes.tolist())] == [*SIZES]
    assert [found.file_names[i] for i in range(6)] == [f"{i}.png" for i in range(6)]
    for row, image in enumerate(given["images"]):
        expected = [entry for entry in given["annotations"] if entry["image_id"] == image["id"]][::-1]
        place = slice(found.starts[row], found.starts[row + 1])
        assert found.annotation_ids[place].tolist() == [entry["id"] for entry in expected]
        assert found.boxes[place].tolist() == [entry["bbox"] for entry in expected]
        assert [CATEGORY_IDS[label] for label in found.labels[place]] == [entry["category_id"] for entry in expected]
        assert found.areas[place].tolist() == [entry["area"] for entry in expected]
        assert found.crowd[place].tolist() == [bool(entry["iscrowd"]) for entry in expected]
        segmentations = [found.segmentation(number) for number in range(place.start, place.stop)]
        assert segmentations == [entry["segmentation"] for entry in expected]
    assert read(tmp_path / "a.json", content, masks=False).segmentations is None


def naive_learned(annotation: dict[str, Any], image: dict[str, Any]) -> bool:
    """mmdet 2.8's `_parse_ann_info`, of one annotation."""
    if annotation.get("ignore", False):
        return False
    x1, y1, w, h = annotation["bbox"]
    inter_w = max(0, min(x1 + w, image["width"]) - max(x1, 0))
    inter_h = max(0, min(y1 + h, image["height"]) - max(y1, 0))
    if inter_w * inter_h == 0:
        return False
    if annotation["area"] <= 0 or w < 1 or h < 1:
        return False
    return not annotation.get("iscrowd", False)


def test_annotations_that_are_learned(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    content, _ = make_content("train")
    image = content["images"][0]
    content["annotations"] = []
    for number in range(300):
        x, y = rng.uniform(-3, 90), rng.uniform(-3, 70)
        w, h = rng.choice([0.0, 0.5, 1.0, 1.5, 20.0], 2)
        if w >= 1 and h >= 1:  # outside of the image it would be refused
            x, y = rng.uniform(-0.9, 79.9), rng.uniform(-0.9, 59.9)
        entry = {"id": number, "image_id": image["id"], "category_id": 3, "bbox": [x, y, w, h]}
        entry["area"] = float(rng.choice([-1.0, 0.0, 0.001, 30.0, 30.0]))
        entry |= {key: int(rng.random() < 0.2) for key in ("iscrowd", "ignore") if rng.random() < 0.7}
        content["annotations"].append(entry)
    learned = read(tmp_path / "a.json", content, masks=False).learned()
    expected = [naive_learned(entry, image) for entry in content["annotations"]]
    assert learned.tolist() == expected
    assert 30 < sum(expected) < 150


def evaluated(coco: Any, detections: list[dict[str, Any]], kind: str) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_ground_truth_for_pycocotools(tmp_path: Path) -> None:
    """Its own objects as detections have an AP of 1, with an annotation of the id 0, too."""
    content, _ = make_content("val")
    content["annotations"] = [entry for entry in content["annotations"] if entry["area"] > 2]
    content["annotations"][0]["id"] = 0
    for entry in content["annotations"]:
        if not entry["iscrowd"]:
            del entry["iscrowd"]
    truth = read(tmp_path / "a.json", content).ground_truth()
    assert [entry["id"] for entry in truth["annotations"]] == [*range(1, len(content["annotations"]) + 1)]
    assert sum(entry["iscrowd"] for entry in truth["annotations"]) == 1
    coco = COCO()
    coco.dataset = truth
    objects = [entry for entry in truth["annotations"] if not entry["iscrowd"]]
    boxes = [{key: entry[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} for entry in objects]
    assert evaluated(coco, boxes, "bbox")[0] == 1.0
    masks = [
        {key: entry[key] for key in ("image_id", "category_id")} | {"segmentation": coco.annToRLE(entry), "score": 0.9}
        for entry in objects
    ]
    assert evaluated(coco, masks, "segm")[0] == 1.0


def test_masks_are_those_of_pycocotools(tmp_path: Path) -> None:
    """Polygons of several parts, uncompressed and compressed RLE; blocks against their pixels, too."""
    content, _ = make_content("train")
    first = content["annotations"][0]
    triangles = [[3.3, 2.7, 20.1, 9.8, 8.0, 30.5], [30.0, 30.0, 60.5, 33.2, 40.7, 59.9, -4.0, 62.0]]
    first["segmentation"] = triangles
    rle = coco_mask.encode(np.asfortranarray(np.random.default_rng(0).random(SIZES[1]) < 0.5).astype(np.uint8))
    entry = next(entry for entry in content["annotations"] if entry["image_id"] == 11)
    entry["segmentation"] = {"size": [*SIZES[1]], "counts": rle["counts"].decode()}
    found = read(tmp_path / "a.json", content)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "a.json"))
    kinds = set()
    for number, key in enumerate(found.annotation_ids):
        annotation = coco.anns[int(key)]
        image = coco.imgs[annotation["image_id"]]
        segmentation = found.segmentation(number)
        kinds.add(type(segmentation.get("counts") if isinstance(segmentation, dict) else segmentation[0]))
        bitmap = draw(segmentation, (image["height"], image["width"]))
        np.testing.assert_array_equal(bitmap, coco.annToMask(annotation))
        if annotation["category_id"] == CATEGORY_IDS[0] and annotation["id"] not in (1, 5) and annotation["area"] > 99:
            x, y, w, h = map(int, annotation["bbox"])
            assert bitmap.sum() == bitmap[y : y + h, x : x + w].sum() == w * h
    assert kinds == {list, str}


def test_run_lengths_are_those_that_pycocotools_writes() -> None:
    rng = np.random.default_rng(0)
    for density in (0.001, 0.05, 0.5, 1.0):
        bitmap = (rng.random((300, 400)) < density).astype(np.uint8)
        text = coco_mask.encode(np.asfortranarray(bitmap))["counts"].decode()
        assert run_lengths(text).tolist() == uncompressed(bitmap)["counts"]


def test_bits_of_masks() -> None:
    bitmaps = (np.random.default_rng(0).random((3, 9, 21)) < 0.5).astype(np.uint8)
    packed = np.zeros((3, 12, 4), np.uint8)
    for bitmap, out in zip(bitmaps, packed, strict=True):
        pack_bits(bitmap, out)
    expected = np.zeros((3, 12, 32), np.uint8)
    expected[:, :9, :21] = bitmaps
    np.testing.assert_array_equal(np.unpackbits(packed, axis=2), expected)
    unpacked = jax.jit(unpack_bits)(packed)
    assert unpacked.dtype == np.uint8
    np.testing.assert_array_equal(unpacked, expected)


def change(entries: str, number: int, **values: Any) -> Callable[[dict[str, Any]], object]:
    def apply(content: dict[str, Any]) -> None:
        for key, value in values.items():
            if value is None:
                del content[entries][number][key]
            else:
                content[entries][number][key] = value

    return apply


def rle(size: list[float], counts: Any) -> Callable[[dict[str, Any]], object]:
    return change("annotations", 2, segmentation={"size": size, "counts": counts})


HEIGHT, WIDTH = SIZES[0]
RLE = ": annotation id 3: segmentation: is RLE"


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda content: content.pop("images"), ': has no "images"; must be of COCO\'s format, with lists of images, '),
        (lambda content: content.update(annotations={}), ': "annotations" is {}; must be of COCO\'s format'),
        (lambda content: content.update(images=[]), ': has an empty list "images"; must hold at least one'),
        (lambda content: content.update(categories=[]), ': has an empty list "categories"; must hold'),
        (lambda content: content["images"].append(3), ": image at position 6: is 3; must be a JSON object"),
        (change("images", 1, id=10), ": image id 10: the entry at position 0 has the same id; ids must be distinct"),
        (change("images", 1, id="11"), ': image at position 1: id="11"; must be an integer from 0'),
        (change("images", 1, id=None), ': image at position 1: has no "id"; must be an integer from 0'),
        (change("images", 1, id=True), ": image at position 1: id=true; must be an integer from 0"),
        (change("images", 1, width=0), ": image id 11: width=0; must be an integer from 1"),
        (change("images", 1, height=80.5), ": image id 11: height=80.5; must be an integer from 1"),
        (
            change("images", 1, height=10**7),
            ": image id 11: is of 60 x 10000000 pixels; at most 89,478,485 are decoded",
        ),
        (change("images", 1, file_name="../a.png"), ': image id 11: file_name="../a.png"; must be the path of a file'),
        (change("images", 1, file_name="/a.png"), ': image id 11: file_name="/a.png"; must be the path of a file'),
        (change("images", 1, file_name="\ud800"), ': image id 11: file_name="\\ud800": is no UTF-8'),
        (change("images", 1, file_name=None), ': image id 11: has no "file_name"; must be the path of a file'),
        (change("categories", 1, id=7), ": category id 7: the entry at position 0 has the same id; ids must be"),
        (change("categories", 1, name="block"), ": has 2 categories of the name 'block'; names must be distinct"),
        (change("categories", 1, name=" "), ': category id 3: name=" "; must be the category\'s name'),
        (change("annotations", 1, id=1), ": annotation id 1: the entry at position 0 has the same id; ids must be"),
        (
            change("annotations", 1, image_id=99),
            ": annotation id 2: image_id=99; must be the id of an image",
        ),
        (change("annotations", 1, image_id=[]), ": annotation id 2: image_id=[]; must be the id of an image"),
        (change("annotations", 1, category_id=1), ": annotation id 2: category_id=1; must be the id of a category"),
        (change("annotations", 1, bbox=None), ': annotation id 2: has no "bbox"; must be x, y, width and height'),
        (change("annotations", 1, bbox=[1, 2, 3]), ": annotation id 2: bbox=[1, 2, 3]; must be x, y, width and height"),
        (change("annotations", 1, bbox=[1, 2, 3, "4"]), ': annotation id 2: bbox=[1, 2, 3, "4"]; must be x, y, width'),
        (
            change("annotations", 1, bbox=[1, 2, 3, float("nan")]),
            ": annotation id 2: bbox=[1, 2, 3, NaN]; must be",
        ),
        (change("annotations", 1, bbox=[1, 2, 10**400, 4]), ": annotation id 2: bbox=[1, 2, 1000000"),
        (
            change("annotations", 1, bbox=[WIDTH, 2, 3, 4]),
            f": annotation id 2: bbox=[{WIDTH}, 2, 3, 4]: is outside its image of {WIDTH} x {HEIGHT} pixels; must be",
        ),
        (
            change("annotations", 1, bbox=[9, 2, -3, 4]),
            ": annotation id 2: bbox=[9, 2, -3, 4]; must be x, y, width and",
        ),
        (change("annotations", 1, bbox=[1, -4, 3, 4]), ": annotation id 2: bbox=[1, -4, 3, 4]: is outside its image"),
        (change("annotations", 1, area=None), ': annotation id 2: has no "area"; must be a number'),
        (change("annotations", 1, area="9"), ': annotation id 2: area="9"; must be a number, the object\'s area in'),
        (change("annotations", 1, iscrowd=2), ": annotation id 2: iscrowd=2; must be 0 or 1"),
        (change("annotations", 1, segmentation=None), ': annotation id 2: has no "segmentation"'),
        (change("annotations", 1, segmentation=[]), ": annotation id 2: segmentation=[]; must be a list of polygons"),
        (change("annotations", 1, segmentation="a"), ': annotation id 2: segmentation="a"; must be a list of polygons'),
        (
            change("annotations", 1, segmentation=[[1, 1, 5, 1, 5, 5], [1, 1, 9, 9]]),
            ": annotation id 2: polygon 1: has 2 points; must have two numbers for each of three points or more",
        ),
        (
            change("annotations", 1, segmentation=[[1, 1, 5, 1, 5, 5, 7]]),
            ": annotation id 2: polygon 0: has 7 num",
        ),
        (change("annotations", 1, segmentation=[1, 1, 5, 1, 5, 5]), ": annotation id 2: polygon 0: is 1; must be"),
        (change("annotations", 1, segmentation=[[1, 1, 5, 1, 5, "5"]]), ": annotation id 2: polygon 0: is [1, 1, 5, 1"),
        (
            change("annotations", 1, segmentation=[[1, 1, 5, 1, 5, float("nan")]]),
            f": annotation id 2: polygon 0: has points outside its image of {WIDTH} x {HEIGHT} pixels by more than",
        ),
        (change("annotations", 1, segmentation=[[1, 1, 5, 1, 10**9, 5]]), ": annotation id 2: polygon 0: has points"),
        (
            rle([WIDTH, HEIGHT], "0"),
            f"{RLE} of the size [{WIDTH}, {HEIGHT}]; must be [{HEIGHT}, {WIDTH}], as its image",
        ),
        (rle([HEIGHT, WIDTH], [-1, 4801]), f"{RLE} of the counts [-1, 4801]; must be integers from 0, or COCO's text"),
        (rle([HEIGHT, WIDTH], "a b"), f'{RLE} of the counts "a b"; must be integers from 0, or COCO\'s text'),
        (rle([HEIGHT, WIDTH], "00o"), f'{RLE} of the counts "00o"; must be integers from 0'),
        (rle([HEIGHT, WIDTH], None), f"{RLE} of the counts null; must be integers from 0"),
        (rle([HEIGHT, WIDTH], [3, 4]), f"{RLE} of 7 pixels; must be runs of 4800 pixels in all, as its image"),
        (rle([HEIGHT, WIDTH], "01"), f"{RLE} of 1 pixels; must be runs of 4800 pixels in all, as its image"),
        (rle([HEIGHT, WIDTH], "0@"), f"{RLE} of a run of -"),
        (rle([HEIGHT, WIDTH], "o" * 7 + "0"), f'{RLE} of the counts "ooooooo0"; must be integers from 0'),
        (rle([HEIGHT, float(WIDTH)], "0"), f"{RLE} of the size [{HEIGHT}, {WIDTH}.0]; must be [{HEIGHT}, {WIDTH}]"),
    ],
)
def test_a_wrong_entry_is_one_line(tmp_path: Path, apply: Callable[[dict[str, Any]], object], message: str) -> None:
    content, _ = make_content("train")
    apply(content)
    with pytest.raises(InputError) as raised:
        read(tmp_path / "a.json", content)
    assert str(raised.value).startswith(f"{tmp_path}/a.json{message}")
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < len(str(tmp_path)) + 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must hold a JSON object, holds list"),  # a file of results
        ("{", "is no JSON: "),
        ("", "is no JSON: "),
        ("[" * 100_000, "is no JSON: "),
    ],
)
def test_a_file_that_is_not_cocos(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_coco(tmp_path / "a.json", masks=False)


def test_boxes_alone_need_no_masks(tmp_path: Path) -> None:
    content, _ = make_content("train")
    for entry in content["annotations"]:
        entry["segmentation"] = "none"
    assert len(read(tmp_path / "a.json", content, masks=False).labels) == len(content["annotations"])
