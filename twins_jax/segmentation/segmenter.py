"""Semantic segmentation with a Twins backbone."""

from typing import Literal, NamedTuple, Unpack, get_args

import jax
from flax import nnx

from twins_jax import ops
from twins_jax.backbone import TwinsBackbone
from twins_jax.base import AnsweringModel
from twins_jax.config import TwinsConfig, TwinsOptions, check_config, variant_config
from twins_jax.errors import MAX_INT, is_integer, require
from twins_jax.inputs import check_images
from twins_jax.segmentation.fcn import FCNHead
from twins_jax.segmentation.preprocess import SegmentationPreprocessing
from twins_jax.segmentation.semantic_fpn import SemanticFPNHead
from twins_jax.segmentation.upernet import UPerHead

SegmentationHead = Literal["upernet", "semantic_fpn"]

HEADS: dict[str, type[UPerHead | SemanticFPNHead]] = {"upernet": UPerHead, "semantic_fpn": SemanticFPNHead}

AUXILIARY_MAP = 2
"""Index of the backbone's map that UPerNet's auxiliary head reads."""


class TrainingLogits(NamedTuple):
    """The logits that a loss needs.

    Attributes:
        decode: of the head, [B, H // 4, W // 4, num_classes].
        auxiliary: of the auxiliary head, [B, H // 16, W // 16, num_classes]; None for Semantic FPN.
    """

    decode: jax.Array
    auxiliary: jax.Array | None


class TwinsSegmenter(AnsweringModel[SegmentationPreprocessing]):
    """Backbone and a head that classifies positions: UPerNet or Semantic FPN (upstream's `segmentation/`).

    BatchNorm takes the statistics of the batch, and updates the running ones, where a call gets `rngs`. Without them it
    takes the running ones.

    Args:
        config: the backbone's configuration.
        head: "upernet", which has an auxiliary head for training, or "semantic_fpn".
        num_classes: outputs.
        rngs: `params` stream for the initial parameters.

    Raises:
        InputError: (a ValueError) naming the argument, its value and what it must be.
    """

    preprocessing_type = SegmentationPreprocessing

    def __init__(self, config: TwinsConfig, head: SegmentationHead, num_classes: int, *, rngs: nnx.Rngs) -> None:
        check_config(config)
        allowed = f"one of {', '.join(HEADS)}"
        require("head", head, isinstance(head, str) and head in get_args(SegmentationHead), allowed)
        is_count = is_integer(num_classes, 1)
        require("num_classes", num_classes, is_count, f"an integer from 1 to {MAX_INT}")
        self.config = config
        self.head = head
        self.num_classes = int(num_classes)
        self.class_names, self.preprocessing = None, None
        self.backbone = TwinsBackbone(config, rngs=rngs)
        self.decode_head = HEADS[head](config.embed_dims, self.num_classes, dtypes=config.dtypes, rngs=rngs)
        if head == "upernet":
            channels = config.embed_dims[AUXILIARY_MAP]
            self.auxiliary_head = FCNHead(channels, self.num_classes, dtypes=config.dtypes, rngs=rngs)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Classifies every pixel.

        Args:
            images: normalized floats [B, H, W, in_channels], H and W at least 32.
            rngs: `dropout` stream; its presence means training. Without it the model is deterministic.

        Returns:
            Logits [B, H, W, num_classes] in `config.dtype`.

        Raises:
            InputError: (a ValueError) naming what is wrong with the images.
        """
        images = check_images(images, self.config.in_channels)
        return ops.resize_bilinear(self.logits4(images, rngs=rngs), (images.shape[1], images.shape[2]))

    def logits4(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Computes logits at stride 4, as the head gives them: [B, H // 4, W // 4, num_classes].

        Arguments and errors are those of a call.
        """
        return self.decode_head(self.backbone(images, rngs=rngs), rngs)

    def training_logits(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> TrainingLogits:
        """Computes the logits of both heads; arguments and errors are those of a call."""
        maps = self.backbone(images, rngs=rngs)
        auxiliary = self.auxiliary_head(maps[AUXILIARY_MAP], rngs) if self.head == "upernet" else None
        return TrainingLogits(self.decode_head(maps, rngs), auxiliary)


def segmenter_config(name: str, **options: Unpack[TwinsOptions]) -> TwinsConfig:
    """Returns the configuration of a variant as a segmenter's backbone: as `variant_config`, with other defaults.

    Upstream's segmentation masks the padding of windows, and its dense SVT norms the output of every stage.
    """
    own = options.copy()
    own.setdefault("window_padding", "mask")
    own.setdefault("stage_norms", variant_config(name).window_size is not None)
    return variant_config(name, **own)
