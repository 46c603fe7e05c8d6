"""Models' answers to images as `python -m twins_jax.predict` shows them: as a line, as JSON and on a page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from twins_jax import image_detector, image_segmenter, page, visualize
from twins_jax.detection.masks import encode_rle
from twins_jax.errors import shown
from twins_jax.image_classifier import Answer, ImageClassifier, padded_size
from twins_jax.image_detector import Detection, ImageDetector, masks_at, rescaled
from twins_jax.image_segmenter import ImageSegmenter
from twins_jax.mask_files import mask_files, write_mask

if TYPE_CHECKING:
    from PIL import Image

THUMBNAIL = 224
"""Largest side of the pictures in a page, in pixels; they are shown smaller, but screens differ."""

THUMBNAIL_OF_PAIR = 384
"""The same of a picture beside its classes."""


THUMBNAIL_WITH_OBJECTS = 480
"""The same of a picture in which boxes and captions are drawn."""


class Shown(Protocol):
    """The answers to one image."""

    def to_text(self) -> str:
        """Returns the answers as the part of a line."""

    def to_json(self) -> dict[str, object]:
        """Returns the answers as fields of an object."""

    def to_figure(self, name: str) -> str:
        """Returns the image, its name and the answers as HTML."""


class Presenter(Protocol):
    """A model with the steps from an image to what is shown of its answers.

    Attributes:
        style: CSS of the page.
        how: how the page shows images, in a few words.
        batch_size: images that are computed at a time.
    """

    style: str
    how: str
    batch_size: int

    def prepare(self, pixels: np.ndarray) -> Any:
        """Makes an image, uint8 [H, W, 3], the model's input."""

    def show(self, images: Sequence[tuple[str, Any]]) -> Sequence[Shown]:
        """Computes the answers to images, each a path and what `prepare` made of the image."""

    def legend(self) -> str:
        """Returns what the page says of all answers until now, as HTML."""


class Classes(NamedTuple):
    """The classes that an image may show, the most probable first."""

    answers: list[Answer]
    pixels: np.ndarray

    def to_text(self) -> str:
        return ", ".join(f"{shown(answer.name)} {answer.probability:.1%}" for answer in self.answers)

    def to_json(self) -> dict[str, object]:
        return {"answers": [answer._asdict() for answer in self.answers]}

    def to_figure(self, name: str) -> str:
        rows = (
            f'<li style="--share: {answer.probability:.2%}"><span>{page.text(answer.name)}</span>'
            f"<span>{answer.probability:.1%}</span>"
            for answer in self.answers
        )
        return _figure(name, page.thumbnail(self.pixels, THUMBNAIL), f'<ol class="bars">{"".join(rows)}</ol>')


class ClassPresenter:
    """A `Presenter` of a classifier."""

    how = "each cut as the model sees it"
    style = """
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(15em, 1fr)); gap: 1.2em; }
.images > figure { border: 1px solid var(--line); border-radius: .5em; overflow: hidden; }
.images img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; }
figcaption { padding: .6em .8em .8em; font-size: .87em; }
.file { font-weight: 600; }
.bars { margin: .4em 0 0; padding: 0; list-style: none; }
.bars li { display: flex; justify-content: space-between; gap: 1em; padding: .35em 0 6px;
  background: linear-gradient(var(--bar), var(--bar)) left bottom / var(--share) 4px no-repeat,
    linear-gradient(var(--line), var(--line)) left bottom / 100% 4px no-repeat; }
.bars span:last-child { white-space: nowrap; font-variant-numeric: tabular-nums; }
"""

    def __init__(self, classifier: ImageClassifier, count: int, batch_size: int) -> None:
        self._classifier = classifier
        self.batch_size = padded_size(count, batch_size)
        self.prepare = classifier.prepare

    def show(self, images: Sequence[tuple[str, np.ndarray]]) -> list[Classes]:
        pixels = [image for _, image in images]
        return list(map(Classes, self._classifier.predict(pixels, self.batch_size), pixels))

    def legend(self) -> str:
        return ""


class Share(NamedTuple):
    """A class in an image.

    Attributes:
        label: position among the model's outputs.
        name: of the class.
        share: of the image's pixels, from 0 to 1.
    """

    label: int
    name: str
    share: float


class Regions(NamedTuple):
    """The classes that cover most of an image, the largest first, and the class of each pixel."""

    shares: list[Share]
    labels: np.ndarray
    pixels: np.ndarray
    mask: Path | None

    def to_text(self) -> str:
        return ", ".join(f"{shown(share.name)} {share.share:.1%}" for share in self.shares)

    def to_json(self) -> dict[str, object]:
        fields: dict[str, object] = {"shares": [share._asdict() for share in self.shares]}
        return fields if self.mask is None else fields | {"mask": str(self.mask)}

    def to_figure(self, name: str) -> str:
        pictures = (self.pixels, np.asarray(visualize.segmentation_overlay(self.pixels, self.labels)))
        pair = "".join(page.thumbnail(picture, THUMBNAIL_OF_PAIR) for picture in pictures)
        rows = (f"<li>{_swatch(share.label)}{page.text(share.name)} {share.share:.1%}" for share in self.shares)
        return _figure(name, f'<div class="pair">{pair}</div>', f'<ul class="classes">{"".join(rows)}</ul>')


_STYLE_OF_CLASSES = """
.images { display: grid; gap: 1.2em; }
.images > figure { border: 1px solid var(--line); border-radius: .5em; overflow: hidden; }
.images img { display: block; width: 100%; }
figcaption { padding: .6em .8em .8em; font-size: .87em; }
.file { font-weight: 600; }
.classes { display: flex; flex-wrap: wrap; gap: .2em 1.2em; margin: .4em 0; padding: 0; list-style: none; }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .4em; vertical-align: -.1em;
  border-radius: .2em; }
"""


class RegionPresenter:
    """A `Presenter` of a segmenter, which computes one image at a time and writes the masks.

    Args:
        segmenter: of images.
        topk: classes of each image to name.
        images: paths of all.
        folder: of the masks; None: they are not written.

    Raises:
        InputError: a mask would take the place of a file of others.
    """

    how = "each beside its classes"
    batch_size = 1
    style = f"""{_STYLE_OF_CLASSES}
.images {{ grid-template-columns: repeat(auto-fill, minmax(min(30em, 100%), 1fr)); }}
.pair {{ display: grid; grid-template-columns: 1fr 1fr; }}
"""

    def __init__(self, segmenter: ImageSegmenter, topk: int, images: Sequence[str], folder: Path | None) -> None:
        self._segmenter, self._topk = segmenter, topk
        self._files: Mapping[str, Path] = {} if folder is None else mask_files(folder, images)
        self._seen = np.zeros(len(segmenter.class_names), bool)
        self.prepare = segmenter.prepare

    def show(self, images: Sequence[tuple[str, image_segmenter.Prepared]]) -> list[Regions]:
        return [self._regions(path, image) for path, image in images]

    def _regions(self, path: str, image: image_segmenter.Prepared) -> Regions:
        labels = self._segmenter.predict(image)
        if (file := self._files.get(path)) is not None:
            write_mask(file, labels)
        names = self._segmenter.class_names
        counts = np.bincount(labels.ravel(), minlength=len(names))
        self._seen |= counts > 0
        top = [label for label in np.argsort(-counts, kind="stable")[: self._topk] if counts[label]]
        shares = [Share(int(label), names[label], float(counts[label] / labels.size)) for label in top]
        return Regions(shares, labels, image.inputs[0], file)

    def legend(self) -> str:
        return _legend(self._segmenter.class_names, np.flatnonzero(self._seen).tolist())


class Objects(NamedTuple):
    """The objects in an image.

    Attributes:
        detections: of the highest score first.
        pixels: the image, in any size.
        names: of all classes.
        topk: classes to name in a line.
    """

    detections: list[Detection]
    pixels: np.ndarray
    names: Sequence[str]
    topk: int

    def _counts(self) -> list[tuple[int, int]]:
        """Returns each label with the number of its objects, the commonest first."""
        return Counter(detection.label for detection in self.detections).most_common()

    def to_text(self) -> str:
        counts = [f"{count} {shown(self.names[label])}" for label, count in self._counts()[: self.topk]]
        return ", ".join(counts) or "nothing"

    def to_json(self) -> dict[str, object]:
        return {"objects": [_object(detection) for detection in self.detections]}

    def to_figure(self, name: str) -> str:
        picture = np.asarray(_drawn(self.detections, self.pixels, self.names))
        rows = (f"<li>{_swatch(label)}{count} {page.text(self.names[label])}" for label, count in self._counts())
        answers = f'<ul class="classes">{"".join(rows) or "<li>nothing"}</ul>'
        return _figure(name, page.thumbnail(picture, THUMBNAIL_WITH_OBJECTS), answers)


def _object(detection: Detection) -> dict[str, object]:
    fields = {name: getattr(detection, name) for name in ("label", "name", "score", "box")}
    mask = detection.mask
    return fields if mask is None else fields | {"mask": encode_rle(mask[None])[0]}


def _drawn(detections: Sequence[Detection], pixels: np.ndarray, names: Sequence[str]) -> "Image.Image":
    """Draws objects over a thumbnail of their image, so that lines and captions are of one width on the page."""
    from PIL import Image  # late: `import twins_jax` does not wait for it

    small = Image.fromarray(pixels)
    small.thumbnail((THUMBNAIL_WITH_OBJECTS, THUMBNAIL_WITH_OBJECTS))
    if not detections:
        return small
    size = small.height, small.width
    boxes = np.array([detection.box for detection in detections], np.float32)
    has_masks = detections[0].mask_probabilities is not None
    return visualize.detection_overlay(
        small,
        rescaled(boxes, detections[0].image_size, size),
        [detection.label for detection in detections],
        scores=[detection.score for detection in detections],
        masks=masks_at(detections, size) if has_masks else None,
        class_names=names,
    )


class ObjectPresenter:
    """A `Presenter` of a detector, which computes one image at a time.

    Args:
        detector: of images.
        topk: classes of each image to name in a line.
    """

    how = "each with the objects in it"
    batch_size = 1
    style = f"""{_STYLE_OF_CLASSES}
.images {{ grid-template-columns: repeat(auto-fill, minmax(min(24em, 100%), 1fr)); }}
"""

    def __init__(self, detector: ImageDetector, topk: int) -> None:
        self._detector, self._topk = detector, topk
        self._seen: set[int] = set()
        self.prepare = detector.prepare

    def show(self, images: Sequence[tuple[str, image_detector.Prepared]]) -> list[Objects]:
        found = [self._detector.predict(image) for _, image in images]
        self._seen |= {detection.label for detections in found for detection in detections}
        names = self._detector.class_names
        return [
            Objects(detections, image.pixels, names, self._topk)
            for detections, (_, image) in zip(found, images, strict=True)
        ]

    def legend(self) -> str:
        return _legend(self._detector.class_names, sorted(self._seen))


def _legend(names: Sequence[str], labels: Sequence[int]) -> str:
    rows = (f"<li>{_swatch(label)}{page.text(names[label])}" for label in labels)
    return f'<ul class="classes">{"".join(rows)}</ul>'


def _swatch(label: int) -> str:
    from twins_jax.segmentation.palette import colorize  # late: it computes its colors

    red, green, blue = colorize(np.array([[label]]))[0, 0]
    return f'<span class="swatch" style="background: rgb({red} {green} {blue})"></span>'


def _figure(name: str, picture: str, answers: str) -> str:
    caption = f'<div class="file">{page.text(name)}</div>{answers}'
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"
