"""Recipes: one function for each result that a command reproduces."""

from collections.abc import Callable

from ..config import TrainConfig
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
"""What `python -m train.main` runs."""

RECIPES: dict[str, Callable[[], TrainConfig]] = {
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
"""What `python -m train.main RECIPE` takes."""
