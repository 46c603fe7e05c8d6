"""Image classification with a Twins backbone."""

import os

import jax
from flax import nnx

from twins_jax.backbone import TwinsBackbone
from twins_jax.config import TwinsConfig, check_config
from twins_jax.errors import MAX_INT, is_integer, require
from twins_jax.layers import LayerNorm, Linear
from twins_jax.preprocess import Preprocessing


class TwinsClassifier(nnx.Module):
    """Backbone, LayerNorm, mean over positions and a linear head (upstream `gvt.py`).

    Args:
        config: the backbone's configuration, without `stage_norms`.
        num_classes: outputs of the head; 0 leaves the head out and returns the pooled features.
        rngs: `params` stream for the initial parameters.

    Attributes:
        class_names: of the outputs, in their order; None where the weights came without.
        multi_label: True for weights that were trained on images with any number of labels: the probability of each
            class is then the sigmoid of its logit, and not a share of a softmax.
        preprocessing: of the images with which the weights were evaluated; None where they came without.

    Raises:
        InputError: (a ValueError) naming the argument, its value and what it must be.
    """

    def __init__(self, config: TwinsConfig, num_classes: int, *, rngs: nnx.Rngs) -> None:
        check_config(config)
        require("num_classes", num_classes, is_integer(num_classes, 0), f"an integer from 0 to {MAX_INT}")
        require(
            "stage_norms", config.stage_norms, not config.stage_norms, "False: a classifier norms the last map itself"
        )
        self.config = config
        self.num_classes = int(num_classes)
        self.class_names: tuple[str, ...] | None = None
        self.multi_label = False
        self.preprocessing: Preprocessing | None = None
        self.backbone = TwinsBackbone(config, rngs=rngs)
        self.norm = LayerNorm(config.embed_dims[-1], epsilon=1e-6, **config.dtypes)
        if num_classes:
            self.head = Linear(config.embed_dims[-1], num_classes, **config.dtypes, rngs=rngs)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Classifies images.

        Args:
            images: normalized floats [B, H, W, in_channels], H and W at least 32.
            rngs: `dropout` stream; with it dropout and stochastic depth act, without it the model is deterministic.

        Returns:
            Logits [B, num_classes], or pooled features [B, C] when num_classes is 0, in `config.dtype`.

        Raises:
            InputError: (a ValueError) naming what is wrong with the images.
        """
        features = self.norm(self.backbone(images, rngs=rngs)[-1]).mean(axis=(1, 2))
        return self.head(features) if self.num_classes else features

    def save_pretrained(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Saves the model; arguments and errors are those of `twins_jax.save_pretrained`."""
        from twins_jax.pretrained import save_pretrained  # late: it imports this file

        save_pretrained(self, folder, overwrite=overwrite)
