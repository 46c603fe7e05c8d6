import re
from pathlib import Path
from types import ModuleType

from tests.support.imagenet import CLASSES
from twins_jax import imagenet


def test_classes_equal_timms(timm: ModuleType) -> None:
    info = timm.data.ImageNetInfo("imagenet-1k")
    assert list(imagenet.lemmas()) == info.label_names()
    assert imagenet.lemmas() == info.label_descriptions(as_dict=True)


def test_names_and_order_equal_torchvisions(torchvision: ModuleType) -> None:
    weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    assert imagenet.class_names() == tuple(weights.meta["categories"])


def test_names_are_distinct() -> None:
    names = imagenet.class_names()
    assert len(set(names)) == len(names) == 1000
    assert (names[0], names[134], names[517], names[999]) == ("tench", "crane bird", "crane", "toilet tissue")
    assert list(imagenet.lemmas()) == sorted(imagenet.lemmas())
    assert tuple(imagenet.lemmas())[:4] == CLASSES[:4]


def test_ids_are_spelled_out_where_all_are_ids() -> None:
    assert imagenet.spelled_out(["n01443537", "n01440764"]) == ("goldfish", "tench")
    assert imagenet.spelled_out(["n01443537", "cat"]) == ("n01443537", "cat")


def test_the_license_is_beside_the_words() -> None:
    folder = Path(imagenet.__file__).with_name("data")
    text = re.sub(r"\s+", " ", (folder / "LICENSE.WordNet").read_text())
    assert "WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved." in text
    assert "LICENSE.WordNet" in (folder / "README.md").read_text()
