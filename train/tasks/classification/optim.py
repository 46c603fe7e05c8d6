"""The parameters that decay, and the learning rates of layer-wise decay, by path in a `TwinsClassifier`."""

import re

import jax

from twins_jax.config import StageInts
from twins_jax.groups import layer_number, number_of_layers


def decays(path: str, leaf: jax.Array) -> bool:
    """Decides whether a parameter decays: all do but biases, norms and other 1-d ones, and the PEG's kernels.

    Upstream exempts `pos_block.*` by `no_weight_decay`, timm's optimizer factory the 1-d parameters.
    """
    return leaf.ndim > 1 and not re.search(r"(^|/)peg/", path)


def layer_scale(path: str, decay: float, depths: StageInts) -> float:
    """Computes the factor on a parameter's learning rate in layer-wise decay, for fine-tuning.

    Args:
        path: of the parameter.
        decay: the factor from each layer to the one before it; see `twins_jax.layer_groups`.
        depths: blocks of each stage.
    """
    return decay ** (number_of_layers(depths) - 1 - layer_number(path, depths))
