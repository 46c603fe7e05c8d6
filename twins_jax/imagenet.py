"""The classes of ImageNet-1K, in the order of a classifier's outputs."""

import functools
import importlib.resources
from collections.abc import Mapping, Sequence
from types import MappingProxyType

_FILE = "imagenet1k_classes.tsv"

# As torchvision calls the two classes whose first lemma is that of another class, too.
_DISTINCT = {"n02012849": "crane bird", "n03710721": "maillot tank suit"}


@functools.cache
def lemmas() -> Mapping[str, str]:
    """Returns the id of each class's WordNet synset -> its lemmas, such as "n01440764" -> "tench, Tinca tinca".

    `data/README.md` names the source and the license of these words.
    """
    text = importlib.resources.files("twins_jax").joinpath("data", _FILE).read_text(encoding="utf-8")
    return MappingProxyType(dict(line.split("\t") for line in text.splitlines()))


def class_names() -> tuple[str, ...]:
    """Returns a short name for each of the 1000 classes, no two the same, such as "tench": those of torchvision."""
    return tuple(_names().values())


def spelled_out(names: Sequence[str]) -> tuple[str, ...]:
    """Returns names with the ids of synsets replaced by class names, if all are ids, as in ImageNet's own folders."""
    known = _names()
    return tuple(known[name] for name in names) if all(name in known for name in names) else tuple(names)


@functools.cache
def _names() -> Mapping[str, str]:
    """Returns the id of each class -> its short name: the first lemma, which is the most usual."""
    return MappingProxyType({synset: _DISTINCT.get(synset, words.split(", ")[0]) for synset, words in lemmas().items()})
