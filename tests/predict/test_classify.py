"""Answers of `twins_jax.classify` against timm's model and transform."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import twins_jax
from tests.predict.conftest import MEAN, SIZE, STD
from tests.support.images import picture, saved
from tests.support.models import SVT, classifier
from tests.support.paths import SHARED_DATA
from twins_jax import InputError, classify, imagenet
from twins_jax.image_classifier import ImageClassifier, _probabilities, padded_size

PHOTOGRAPHS = SHARED_DATA / "imagenet-sample"


@pytest.fixture(scope="module")
def model(weights: Path) -> twins_jax.TwinsClassifier:
    return twins_jax.from_pretrained(weights)


def by_timm(timm: ModuleType, timm_model: Any, images: list[Image.Image]) -> np.ndarray:
    """timm's probabilities in float64 of images through timm's transform."""
    import torch

    transform = timm.data.create_transform(
        SIZE, is_training=False, crop_pct=0.9, interpolation="bicubic", mean=MEAN, std=STD
    )
    batch = torch.stack([transform(image.convert("RGB")) for image in images])
    with torch.no_grad():
        probabilities = timm_model.double()(batch.double()).softmax(-1).numpy()
    timm_model.float()
    return probabilities


def assert_answers(answers: list[list[twins_jax.Answer]], probabilities: np.ndarray, topk: int = 5) -> None:
    assert [len(each) for each in answers] == [topk] * len(probabilities)
    for each, row in zip(answers, probabilities, strict=True):
        assert [answer.label for answer in each] == np.argsort(-row)[:topk].tolist()
        np.testing.assert_allclose([answer.probability for answer in each], np.sort(row)[::-1][:topk], rtol=2e-5)


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason="needs shared/data/imagenet-sample beside the project")
def test_photographs_as_timm_answers(timm: ModuleType, timm_model: Any, model: twins_jax.TwinsClassifier) -> None:
    files = sorted(PHOTOGRAPHS.glob("*/*"))[:11]
    answers = classify(model, files, batch_size=2)
    assert_answers(answers, by_timm(timm, timm_model, [Image.open(file) for file in files]))
    assert {answer.name for each in answers for answer in each} <= set(imagenet.class_names())
    assert all(answer.name == imagenet.class_names()[answer.label] for each in answers for answer in each)


def test_any_kind_of_image(timm: ModuleType, timm_model: Any, model: twins_jax.TwinsClassifier) -> None:
    """Files, bytes, arrays and PIL's images; gray, palette, CMYK and 16-bit samples; turned by EXIF data."""
    image = picture(90, 70)
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = np.asarray(image.convert("L")).astype(np.uint16) * 256 + 77
    pictures = {
        "PIL": (image, image),
        "array": (np.asarray(image), image),
        "gray": (image.convert("L"), image.convert("L")),
        "palette": (saved(image.quantize(50), "PNG"), image.quantize(50)),
        "CMYK": (image.convert("CMYK"), image.convert("CMYK").convert("RGB")),
        "16 bits": (saved(Image.fromarray(wide), "PNG"), image.convert("L")),
        "turned": (saved(image, "PNG", exif=exif), image.transpose(Image.Transpose.ROTATE_270)),
    }
    answers = classify(model, [given for given, _ in pictures.values()], batch_size=2)
    assert_answers(answers, by_timm(timm, timm_model, [shown for _, shown in pictures.values()]))


def test_padding_does_not_change_answers(model: twins_jax.TwinsClassifier) -> None:
    images = np.stack([np.asarray(picture(70, 70, seed)) for seed in range(4)])
    whole = classify(model, images, batch_size=2)
    assert whole == classify(model, images[:2], batch_size=2) + classify(model, list(images[2:]))
    classifier = ImageClassifier(model, 5)
    padded = [classifier.predict([classifier.prepare(image)], 2)[0] for image in images]
    assert [each[0].label for each in padded] == [each[0].label for each in whole]
    for one, other in zip(padded, whole, strict=True):
        np.testing.assert_allclose([a.probability for a in one], [a.probability for a in other], rtol=1e-6)
    assert classify(model, []) == []


def test_compiled_once_for_a_size(model: twins_jax.TwinsClassifier) -> None:
    images = [picture(70, 70, seed) for seed in range(4)]
    classify(model, images, batch_size=2)
    before = _probabilities._cache_size()
    classify(model, images, batch_size=2)
    classify(model, images[:2], topk=7)
    assert _probabilities._cache_size() == before


@pytest.mark.parametrize(("count", "most", "size"), [(1, 16, 1), (3, 16, 4), (9, 16, 16), (17, 16, 16), (5, 6, 6)])
def test_padded_size(count: int, most: int, size: int) -> None:
    assert padded_size(count, most) == size


def test_several_labels_have_a_probability_each() -> None:
    """Their sum is not 1: a sigmoid each, in float64 by NumPy."""
    model = small(3)
    image = np.asarray(picture(40, 40))
    logits = np.asarray(model(twins_jax.preprocess(image)), np.float64)[0]
    model.multi_label = True
    (answers,) = classify(model, [image])
    found = {answer.label: answer.probability for answer in answers}
    np.testing.assert_allclose([found[label] for label in range(3)], 1 / (1 + np.exp(-logits)), rtol=2e-5)


@pytest.fixture
def answers_abc(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is not computed: its outputs are 0.2, 0.5 and 0.3, whatever it sees."""
    monkeypatch.setattr("twins_jax.image_classifier._probabilities", lambda *_: np.float32([[0.2, 0.5, 0.3]]))


def small(num_classes: int = 3, **options: Any) -> twins_jax.TwinsClassifier:
    return classifier(dataclasses.replace(SVT, **options), num_classes)


@pytest.mark.usefixtures("answers_abc")
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, ["class 1", "class 2", "class 0"]),
        (("a", "b", "c"), ["b", "c", "a"]),
        (["a", "b", "c"], ["b", "c", "a"]),
        (("n01443537", "n01440764", "n02012849"), ["tench", "crane bird", "goldfish"]),
        (("n01443537", "b", "c"), ["b", "c", "n01443537"]),
    ],
)
def test_names(names: Sequence[str] | None, expected: list[str]) -> None:
    model = small()
    model.class_names = names
    [answers] = classify(model, [picture(40, 40)])
    assert [answer.name for answer in answers] == expected
    assert [answer.label for answer in answers] == [1, 2, 0]
    np.testing.assert_allclose([answer.probability for answer in answers], [0.5, 0.3, 0.2], rtol=1e-6)
    assert classify(model, [picture(40, 40)], topk=1) == [answers[:1]]


def test_names_may_be_a_list_and_are_no_part_of_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []

    def compute(graphdef: nnx.GraphDef[Any], *_: Any) -> np.ndarray:
        keys.append(hash(graphdef))
        return np.float32([[0.2, 0.5, 0.3]])

    monkeypatch.setattr("twins_jax.image_classifier._probabilities", compute)
    model: Any = small()
    for names in (None, ["a", "b", "c"], ("d", "e", "f")):
        model.class_names = names
        [[answer]] = classify(model, [picture(40, 40)], topk=1)
        assert answer.name == (names[1] if names else "class 1")
        assert model.class_names == (names and tuple(names))
    assert len(set(keys)) == 1


def test_probabilities_are_computed_in_float32() -> None:
    model = small(dtype="bfloat16")
    images = np.zeros((2, 32, 32, 3), np.uint8)
    out = _probabilities.eval_shape(nnx.graphdef(model), twins_jax.get_params(model), images)
    assert (out.shape, out.dtype) == ((2, 3), np.float32)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a single path": ({"pictures": "a.jpg"}, "pictures=<class 'str'>: must be a list of images; of a single one"),
    "a single image": ({"pictures": np.zeros((9, 9, 3), np.uint8)}, "pictures=<class 'numpy.ndarray'>: must be a list"),
    "PIL's image": ({"pictures": picture(9, 9)}, "pictures=<class 'PIL.Image.Image'>: must be a list"),
    "nothing": ({"pictures": None}, "pictures=<class 'NoneType'>: must be a list"),
    "no image": ({"pictures": [picture(9, 9), b""]}, "picture: not a readable image: the file is empty"),
    "topk": ({"topk": 0}, "topk=0: must be an integer from 1"),
    "topk, a float": ({"topk": 5.0}, "topk=5.0: must be an integer from 1"),
    "batch_size": ({"batch_size": 0}, "batch_size=0: must be an integer from 1"),
    "no model": ({"model": len}, "model=<class 'builtin_function_or_method'>: must be a TwinsClassifier"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.usefixtures("answers_abc")
def test_refused(kind: str) -> None:
    given, message = REFUSED[kind]
    arguments = {"model": small(), "pictures": [picture(40, 40)]} | given
    with pytest.raises(InputError) as caught:
        classify(**arguments)
    assert str(caught.value).startswith(message)


def test_models_that_do_not_fit_photographs() -> None:
    def refused(model: twins_jax.TwinsClassifier) -> str:
        with pytest.raises(InputError) as caught:
            classify(model, [picture(40, 40)])
        return str(caught.value)

    assert refused(small(0)).startswith("num_classes=0: must be from 1")
    assert refused(small(in_channels=1)) == "in_channels=1: must be 3: images are read as RGB"


def test_outputs_that_are_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twins_jax.image_classifier._probabilities", lambda *_: np.float32([[0.2, np.nan, 0.3]]))
    with pytest.raises(InputError, match=r"^the model's outputs are not finite: its weights may be damaged"):
        classify(small(), [picture(40, 40)])
