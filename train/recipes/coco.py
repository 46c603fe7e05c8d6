"""The published detection on COCO 2017 (arXiv 2104.13840, section 4.3): the 1x schedule, six variants, both heads.

Every recipe is launched as `python -m train.main coco_retinanet_svt_small_1x --data.dir DIR --init CHECKPOINT`, with
train2017/, val2017/ and annotations/ as released in DIR and a classifier's weights, trained on ImageNet-1K, in
CHECKPOINT. Settings are those of upstream's `detection/configs` and of mmdet 2.8. The batch is that of all devices
together; its losses are normalized in groups of two images, as on the reference's eight GPUs.

Three things differ from the reference: a batch may hold images of both orientations, of which the rarer, portraits, are
shrunk to fit the one shape of training (`train/tasks/detection/shapes.py`); a batch may span two epochs; and the random
numbers are others.
"""

from typing import Literal

from ..config import CheckpointConfig, ModelConfig
from ..tasks.detection.config import DetectionConfig, DetectionDataConfig, DetectionOptimConfig

TRAIN_EXAMPLES = 117_266
"""Images of train2017 with annotations and sides of at least 32 pixels."""

EPOCH = -(-TRAIN_EXAMPLES // 16)
"""Steps."""


def _coco(head: Literal["retinanet", "mask_rcnn"], variant: str) -> DetectionConfig:
    """The settings that the recipes share: upstream's `detection/configs/_base_` and its models' own files."""
    return DetectionConfig(
        workdir=f"runs/coco_{head}_{variant}_1x",
        model=ModelConfig(name=f"twins_{variant}", drop_path_rate=0.2, window_padding="zero"),
        head=head,
        group_size=2,
        box_samples=512,
        data=DetectionDataConfig(
            source="coco", dir="data", shorter=800, longer=1333, flip=0.5, multi_scale=False, workers=8
        ),
        optim=DetectionOptimConfig(
            learning_rate=1e-4 if head == "retinanet" else 2e-4,
            weight_decay=1e-4,
            decay_at=(8 / 12, 11 / 12),
            decay_factor=0.1,
            warmup_steps=500,
            warmup_ratio=0.001,
        ),
        checkpoint=CheckpointConfig(every_steps=EPOCH),
        epochs=12,
        batch_size=16,
        eval_batch_size=8,
        eval_every_steps=EPOCH,
    )


def coco_retinanet_pcpvt_small_1x() -> DetectionConfig:
    """Twins-PCPVT-S with RetinaNet on COCO, 12 epochs; published box AP 43.0 (the paper's table).

    Command: `python -m train.main coco_retinanet_pcpvt_small_1x --data.dir DIR --init CHECKPOINT`. Not rerun by us.
    """
    return _coco("retinanet", "pcpvt_small")


def coco_retinanet_pcpvt_base_1x() -> DetectionConfig:
    """Twins-PCPVT-B with RetinaNet on COCO, 12 epochs; published box AP 44.3 (the paper's table).

    Command: `python -m train.main coco_retinanet_pcpvt_base_1x --data.dir DIR --init CHECKPOINT`. Not rerun by us.
    """
    return _coco("retinanet", "pcpvt_base")


def coco_retinanet_pcpvt_large_1x() -> DetectionConfig:
    """Twins-PCPVT-L with RetinaNet on COCO, 12 epochs; published box AP 45.1 (the paper's table).

    Command: `python -m train.main coco_retinanet_pcpvt_large_1x --data.dir DIR --init CHECKPOINT`. Not rerun by us.
    """
    return _coco("retinanet", "pcpvt_large")


def coco_retinanet_svt_small_1x() -> DetectionConfig:
    """Twins-SVT-S with RetinaNet on COCO, 12 epochs; published box AP 43.0 (the paper's table).

    Command: `python -m train.main coco_retinanet_svt_small_1x --data.dir DIR --init CHECKPOINT`. Not rerun by us.
    """
    return _coco("retinanet", "svt_small")


def coco_retinanet_svt_base_1x() -> DetectionConfig:
    """Twins-SVT-B with RetinaNet on COCO, 12 epochs; published box AP 45.3 (the paper's table).

    Command: `python -m train.main coco_retinanet_svt_base_1x --data.dir DIR --init CHECKPOINT`. Not rerun by us.
    """
    return _coco("retinanet", "svt_base")


def coco_retinanet_svt_large_1x() -> DetectionConfig:
    """Twins-SVT-L with RetinaNet on COCO, 12 epochs; published box AP 45.7 (the paper's table).

    Command: `python -m train.main coco_retinanet_svt_large_1x --data.dir DIR --init CHECKPOINT`. Not rerun by us.
    """
    return _coco("retinanet", "svt_large")


def coco_mask_rcnn_pcpvt_small_1x() -> DetectionConfig:
    """Twins-PCPVT-S with Mask R-CNN on COCO, 12 epochs; published box AP 42.9, mask AP 40.0 (the paper's table).

    Command: `python -m train.main coco_mask_rcnn_pcpvt_small_1x --data.dir DIR --init CHECKPOINT`. Not rerun by us.
    """
    return _coco("mask_rcnn", "pcpvt_small")


def coco_mask_rcnn_pcpvt_base_1x() -> DetectionConfig:
    """Twins-PCPVT-B with Mask R-CNN on COCO, 12 epochs; published box AP 44.6, mask AP 40.9 (the paper's table).

    Command: `python -m train.main coco_mask_rcnn_pcpvt_base_1x --data.dir DIR --init CHECKPOINT`. Not rerun by us.
    """
    return _coco("mask_rcnn", "pcpvt_base")


def coco_mask_rcnn_pcpvt_large_1x() -> DetectionConfig:
    """Twins-PCPVT-L with Mask R-CNN on COCO, 12 epochs; published box AP 45.4, mask AP 41.5 (the paper's table).

    Command: `python -m train.main coco_mask_rcnn_pcpvt_large_1x --data.dir DIR --init CHECKPOINT`. Not rerun by us.
    """
    return _coco("mask_rcnn", "pcpvt_large")


def coco_mask_rcnn_svt_small_1x() -> DetectionConfig:
    """Twins-SVT-S with Mask R-CNN on COCO, 12 epochs; published box AP 43.4, mask AP 40.3 (the paper's table).

    Command: `python -m train.main coco_mask_rcnn_svt_small_1x --data.dir DIR --init CHECKPOINT`. Not rerun by us.
    """
    return _coco("mask_rcnn", "svt_small")


def coco_mask_rcnn_svt_base_1x() -> DetectionConfig:
    """Twins-SVT-B with Mask R-CNN on COCO, 12 epochs; published box AP 45.2, mask AP 41.5 (the paper's table).

    Command: `python -m train.main coco_mask_rcnn_svt_base_1x --data.dir DIR --init CHECKPOINT`. Not rerun by us.
    """
    return _coco("mask_rcnn", "svt_base")


def coco_mask_rcnn_svt_large_1x() -> DetectionConfig:
    """Twins-SVT-L with Mask R-CNN on COCO, 12 epochs; published box AP 45.9, mask AP 41.6 (the paper's table).

    Command: `python -m train.main coco_mask_rcnn_svt_large_1x --data.dir DIR --init CHECKPOINT`. Not rerun by us.
    """
    return _coco("mask_rcnn", "svt_large")
