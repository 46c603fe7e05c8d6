"""Parameters by depth: layers for layer-wise learning rates, and stages to freeze."""

import re
from typing import Any

from flax import nnx, traverse_util
from flax.nnx import filterlib

from twins_jax.backbone import PATCH_SIZES, TwinsBackbone
from twins_jax.config import StageInts
from twins_jax.errors import is_integer, require
from twins_jax.fit import by_name
from twins_jax.functional import Params, get_params
from twins_jax.model import Model


def layer_groups(model: nnx.Module) -> dict[str, Any]:
    """Numbers the layers of a model's parameters from the first to the last, as timm's `group_matcher` of Twins does.

    Layer 0 is the patch embedding of the first stage. Each block is a layer. The first block of a stage takes along
    the stage's PEG and, after the first stage, its patch embedding; the last one takes along the norm that follows it,
    if any. The last layer is the head, with all parameters outside of the backbone in a model of your own.

    Layer-wise decay multiplies the learning rate of a layer by `decay ** (last - layer)`.

    Args:
        model: a model of this library, or one of your own with a `TwinsBackbone` in it.

    Returns:
        Nested dicts like `get_params(model)`, with a number in the place of each array. They are labels for
        `optax.multi_transform`.

    Raises:
        InputError: (a ValueError) it is no such model.
    """
    owners = {"".join(f"{part}/" for part in path): module.config.depths for path, module in _twins(model)}
    last = max(map(number_of_layers, owners.values())) - 1

    def layer(path: str) -> int:
        for owner, depths in owners.items():  # a backbone comes before the classifier around it
            if path.startswith(owner):
                return layer_number(path.removeprefix(owner), depths)
        return last

    return traverse_util.unflatten_dict({path: layer(path) for path in by_name("model", get_params(model))}, sep="/")


def number_of_layers(depths: StageInts) -> int:
    """Returns the number of layers of a model with these depths: all blocks, what precedes them, and the head."""
    return sum(depths) + 2


def layer_number(path: str, depths: StageInts) -> int:
    """Returns the layer of one parameter; see `layer_groups`.

    Args:
        path: of the parameter in a `TwinsClassifier` or a `TwinsBackbone`, such as "backbone/stages/0/peg/kernel".
        depths: blocks of each stage.
    """
    match = re.match(r"(?:backbone/)?stages/(\d)/(?:blocks/(\d+)/)?(patch_embed/)?", path)
    if match:
        stage, block, embeds = int(match[1]), int(match[2] or 0), bool(match[3])
        return 0 if stage == 0 and embeds else 1 + sum(depths[:stage]) + block
    if match := re.match(r"(?:backbone/)?norms/(\d)/", path):
        return sum(depths[: int(match[1]) + 1])
    return sum(depths) + (0 if path.startswith("norm/") else 1)


def stages_below(model: nnx.Module, stage: int) -> filterlib.PathIn:
    """Selects the first stages of a model's backbone, such as to freeze them.

    The result is a filter of NNX. With `trained = nnx.All(nnx.Param, nnx.Not(stages_below(model, 2)))`, stages 0 and 1
    stay as they are in a loop of `nnx.Optimizer(model, optimizer, wrt=trained)` and
    `nnx.value_and_grad(loss, argnums=nnx.DiffState(0, trained))`. `param_mask` makes it a mask for optax.

    Args:
        model: a model of this library, or one of your own with a `TwinsBackbone` in it.
        stage: the first stage that is not selected, from 0 (none is) to 4 (the whole backbone is).

    Returns:
        A filter of the variables in the stages before `stage`: patch embeddings, blocks, PEGs and stage norms.

    Raises:
        InputError: (a ValueError) naming what is wrong with an argument.
    """
    require("stage", stage, is_integer(stage, 0, len(PATCH_SIZES)), f"an integer from 0 to {len(PATCH_SIZES)}")
    owners = [path for path, module in _twins(model) if isinstance(module, TwinsBackbone)]
    starts = {(*path, part, index) for path in owners for part in ("stages", "norms") for index in range(stage)}
    variables = (path for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Variable))
    return filterlib.PathIn(*(path for path in variables if any(path[: len(start)] == start for start in starts)))


def param_mask(params: Params, selected: filterlib.Filter) -> dict[str, Any]:
    """Marks the parameters that a filter of NNX selects, for optax and other functions of plain dicts.

    With `frozen = param_mask(params, stages_below(model, 2))` the optimizer `optax.multi_transform({True:
    optax.set_to_zero(), False: optimizer}, frozen)` leaves stages 0 and 1 as they are, and has no state for them.

    Args:
        params: as `get_params` and `split_model` give them.
        selected: a filter, such as `stages_below(model, 2)` or `nnx.PathContains("head")`.

    Returns:
        Nested dicts like `params`, with True in the place of each selected array, and False in that of the others.

    Raises:
        InputError: (a ValueError) naming what is wrong with an argument.
    """
    try:
        predicate = filterlib.to_predicate(selected)
    except (TypeError, ValueError):  # the second from a mistake in what Flax 0.12 says of it
        require("selected", selected, False, "a filter of NNX, such as stages_below(model, 2)")

    def is_selected(path: str, value: Any) -> bool:
        parts = tuple(int(part) if part.isdecimal() else part for part in path.split("/"))
        return bool(predicate(parts, nnx.Param(value)))

    marks = {path: is_selected(path, value) for path, value in by_name("params", params).items()}
    return traverse_util.unflatten_dict(marks, sep="/")


def _twins(model: nnx.Module) -> list[tuple[tuple[Any, ...], Model]]:
    """Finds the models of this library within a model, with NNX's paths; a classifier follows its backbone."""
    require("model", type(model), isinstance(model, nnx.Module), "a model, an nnx.Module")
    found = [(path, node) for path, node in nnx.iter_graph(model) if isinstance(node, Model)]
    require("model", type(model), bool(found), "a model with a TwinsBackbone in it")
    return found
