"""The parameters that decay, and the learning rates of layer-wise decay, by path in a `TwinsClassifier`."""

import re

import jax


def decays(path: str, leaf: jax.Array) -> bool:
    """Decides whether a parameter decays: all do but biases, norms and other 1-d ones, and the PEG's kernels.

    Upstream exempts `pos_block.*` by `no_weight_decay`, timm's optimizer factory the 1-d parameters.
    """
    return leaf.ndim > 1 and not re.search(r"(^|/)peg/", path)


def layer_scale(path: str, decay: float, depths: tuple[int, ...]) -> float:
    """Computes the factor on a parameter's learning rate in layer-wise decay, for fine-tuning.

    Layers are, from the first: the first stage's patch embedding; each block, of which a stage's first one takes along
    the stage's PEG and, after the first stage, its patch embedding, and the last of all the final norm; and the head,
    whose factor is 1 (the numbers of timm's `group_matcher` of Twins).

    Args:
        path: of the parameter.
        decay: the factor from each layer to the one before it.
        depths: blocks of each stage.
    """
    match = re.match(r"backbone/stages/(\d)/(?:blocks/(\d+)/)?(patch_embed)?", path)
    if not match:
        return decay if path.startswith("norm/") else 1.0
    stage, block = int(match[1]), int(match[2] or 0)
    is_stem = stage == 0 and match[3]
    return decay ** (sum(depths) + 1 - (0 if is_stem else 1 + sum(depths[:stage]) + block))
