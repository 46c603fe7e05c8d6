"""Recipes: one function for each result that a command reproduces."""

from collections.abc import Callable

from train.config import TrainConfig
from train.recipes.digits import digits

RECIPES: dict[str, Callable[[], TrainConfig]] = {recipe.__name__: recipe for recipe in (digits,)}
"""What `python -m train.main RECIPE` takes."""

DEFAULT = digits
"""What `python -m train.main` runs."""
