"""Mask R-CNN (arXiv 1703.06870): proposals, then classes, boxes and masks of each."""

from collections.abc import Sequence

import jax
from flax import nnx

from twins_jax.config import TwinsConfig
from twins_jax.detection.detector import Detections, TwinsDetector
from twins_jax.detection.roi_heads import BoxHead, MaskHead, mask_probabilities, region_detections
from twins_jax.detection.rpn import RegionProposalNetwork, proposals
from twins_jax.fpn import FeaturePyramid

MAX_PROPOSALS = 1000
"""Proposals of an image, and boxes of a level that compete for them (upstream's `test_cfg`, `rpn`)."""


class TwinsMaskRCNN(TwinsDetector):
    """Mask R-CNN with a Twins backbone (upstream's `detection/configs/mask_rcnn_*`); arguments: see `TwinsDetector`.

    The pyramid reads all four of the backbone's maps; a fifth level, of stride 64, serves the proposals alone.
    """

    head = "mask_rcnn"

    def __init__(self, config: TwinsConfig, num_classes: int, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, num_classes, rngs=rngs)
        init = nnx.initializers.xavier_uniform()
        self.neck = FeaturePyramid(config.embed_dims, kernel_init=init, dtypes=config.dtypes, rngs=rngs)
        self.rpn = RegionProposalNetwork(dtypes=config.dtypes, rngs=rngs)
        self.box_head = BoxHead(self.num_classes, dtypes=config.dtypes, rngs=rngs)
        self.mask_head = MaskHead(self.num_classes, dtypes=config.dtypes, rngs=rngs)

    def features(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> tuple[jax.Array, ...]:
        """Computes the five maps P2 to P6, of strides 4 to 64; see `TwinsDetector.features`.

        The last is every second position of the one before it.
        """
        levels = self.neck(self.backbone(images, rngs=rngs))
        return (*levels, levels[-1][:, ::2, ::2])

    def detections(self, features: Sequence[jax.Array], sizes: jax.Array) -> Detections:
        boxes, valid = proposals(self.rpn(features), sizes, MAX_PROPOSALS, MAX_PROPOSALS)
        found = region_detections(*self.box_head(features, boxes), boxes, valid, sizes)
        logits = self.mask_head(features, found.boxes)
        return found._replace(masks=mask_probabilities(logits, found.labels))
