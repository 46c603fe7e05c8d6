"""Image classification with a Twins backbone."""

from collections.abc import Sequence

import jax
from flax import nnx

from twins_jax.backbone import TwinsBackbone
from twins_jax.base import AnsweringModel
from twins_jax.config import TwinsConfig, check_config
from twins_jax.errors import MAX_INT, InputError, is_integer, require
from twins_jax.inputs import as_array
from twins_jax.layers import LayerNorm, Linear, check_rngs
from twins_jax.preprocess import Preprocessing


class TwinsClassifier(AnsweringModel[Preprocessing]):
    """Backbone, LayerNorm, mean over positions and a linear head (upstream `gvt.py`).

    Args:
        config: the backbone's configuration, without `stage_norms`.
        num_classes: outputs of the head; 0 leaves the head out and returns the pooled features.
        rngs: `params` stream for the initial parameters.

    Raises:
        InputError: (a ValueError) naming the argument, its value and what it must be.
    """

    preprocessing_type = Preprocessing

    def __init__(self, config: TwinsConfig, num_classes: int, *, rngs: nnx.Rngs) -> None:
        check_config(config)
        _check_num_classes(num_classes)
        require(
            "stage_norms", config.stage_norms, not config.stage_norms, "False: a classifier norms the last map itself"
        )
        self.config = config
        self.num_classes = int(num_classes)
        self.class_names, self.multi_label, self.preprocessing = None, False, None
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
        return self.forward_head(self.forward_features(images, rngs=rngs))

    @property
    def multi_label(self) -> bool:
        """True for weights that were trained on images with any number of labels.

        The probability of each class is then the sigmoid of its logit, and not a share of a softmax.
        """
        return self._multi_label

    @multi_label.setter
    def multi_label(self, value: bool) -> None:
        require("multi_label", value, isinstance(value, bool), "True or False")
        self._multi_label = value

    @property
    def num_features(self) -> int:
        """Channels of the features that the head reads."""
        return self.backbone.num_features

    def forward_features(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Computes the last map of the backbone after the final norm.

        timm returns the same numbers as tokens: `features.reshape(B, -1, C)`.

        Args:
            images: as for a call.
            rngs: as for a call.

        Returns:
            A map [B, H // 32, W // 32, C], C = `num_features`, in `config.dtype`.

        Raises:
            InputError: (a ValueError) naming what is wrong with the images.
        """
        return self.norm(self.backbone(images, rngs=rngs)[-1])

    def forward_head(self, features: jax.Array, *, pre_logits: bool = False) -> jax.Array:
        """Pools features and classifies them.

        Args:
            features: a map [B, h, w, C] as `forward_features` returns it, C = `num_features`.
            pre_logits: stop before the head.

        Returns:
            Logits [B, num_classes]; or pooled features [B, C], with `pre_logits` and for a model without a head.

        Raises:
            InputError: (a ValueError) naming what is wrong with an argument.
        """
        features = as_array("features", features)
        allowed = f"[B, h, w, {self.num_features}], as forward_features returns them"
        is_map = features.ndim == 4 and features.shape[-1] == self.num_features and 0 not in features.shape[1:]
        require("features.shape", features.shape, is_map, allowed)
        require("pre_logits", pre_logits, isinstance(pre_logits, bool), "True or False")
        pooled = features.mean(axis=(1, 2))
        return pooled if pre_logits or not self.num_classes else self.head(pooled)

    def intermediates(
        self, images: jax.Array, blocks: Sequence[int] | None = None, *, rngs: nnx.Rngs | None = None
    ) -> tuple[jax.Array, ...]:
        """Computes the outputs of the backbone's blocks; see `TwinsBackbone.intermediates`.

        The maps at the ends of the stages are `model.backbone(images)`.
        """
        return self.backbone.intermediates(images, blocks, rngs=rngs)

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs | None = None) -> None:
        """Puts a fresh head in the place of the model's, in place; `class_names` and `multi_label` are reset.

        What was made from the model before knows the old head: an optimizer, a jitted function, `split_model`'s.

        Args:
            num_classes: outputs of the new head; 0 removes the head, and the model returns pooled features.
            rngs: `params` stream for the new head; needed only for that.

        Raises:
            InputError: (a ValueError) naming what is wrong with an argument. The model is as before then.
        """
        _check_num_classes(num_classes)
        head = None
        if num_classes:
            if rngs is None:
                raise InputError(f"rngs=None: must be given for the fresh head of num_classes={num_classes}")
            check_rngs(rngs, "params")
            head = Linear(self.num_features, int(num_classes), **self.config.dtypes, rngs=rngs)
        had_head = bool(self.num_classes)
        self.num_classes = int(num_classes)
        self.class_names, self.multi_label = None, False
        if head is not None:
            self.head = head
        elif had_head:
            del self.head


def _check_num_classes(num_classes: int) -> None:
    require("num_classes", num_classes, is_integer(num_classes, 0), f"an integer from 0 to {MAX_INT}")
