"""Recipes: one function for each result that a command reproduces."""

from collections.abc import Callable

from ..config import RunConfig
from .cifar import cifar10
from .digits import digits
from .finetune import finetune_384, finetune_folder
from .imagenet import (
    imagenet_pcpvt_base,
    imagenet_pcpvt_large,
    imagenet_pcpvt_small,
    imagenet_svt_base,
    imagenet_svt_large,
    imagenet_svt_small,
)

DEFAULT = digits
"""The recipe of `python -m train.main` without a name."""

RECIPES: dict[str, Callable[[], RunConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        digits,
        cifar10,
        imagenet_pcpvt_small,
        imagenet_pcpvt_base,
        imagenet_pcpvt_large,
        imagenet_svt_small,
        imagenet_svt_base,
        imagenet_svt_large,
        finetune_folder,
        finetune_384,
    )
}
"""The names that `python -m train.main RECIPE` takes."""
