"""The published training on ImageNet-1K (arXiv 2104.13840, section 4.1) for all six variants.

Every recipe is launched as `python -m train.main imagenet_svt_small --data.dir DIR`, with the data set in DIR as
`python -m train.prepare imagenet2012` writes it, or as a folder with `--data.source folder`. The batch of 1024 is that
of all devices together. If it does not fit in their memory, `--optim.accumulate` cuts it into parts with the same
gradients but for stochastic depth, which then draws other rows.
"""

from ..config import CheckpointConfig, ModelConfig
from ..tasks.classification.config import (
    ClassificationConfig,
    ClassificationDataConfig,
    ClassificationOptimConfig,
    MixConfig,
)

TRAIN_EXAMPLES = 1_281_167
"""Images in ImageNet-1K's training split."""

EVAL_EXAMPLES = 50_000
"""Images in its validation split."""

EPOCH = TRAIN_EXAMPLES // 1024
"""Steps in an epoch of batches of 1024."""


def _imagenet(variant: str, drop_path_rate: float) -> ClassificationConfig:
    """The settings that the six recipes share: section 4.1 of the paper and upstream's training script (DeiT's)."""
    return ClassificationConfig(
        workdir=f"runs/imagenet_{variant}",
        model=ModelConfig(name=f"twins_{variant}", drop_path_rate=drop_path_rate, dtype="bfloat16"),
        data=ClassificationDataConfig(
            source="imagenet2012",
            image_size=224,
            crop_scale=(0.08, 1.0),
            flip=0.5,
            rand_augment_layers=2,
            rand_augment_magnitude=9.0,
            rand_augment_std=0.5,
            eval_crop=0.875,
            workers=8,
        ),
        mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0, switch_probability=0.5, erase_probability=0.25),
        optim=ClassificationOptimConfig(
            learning_rate=5e-4,
            warmup_learning_rate=1e-6,
            min_learning_rate=1e-5,
            warmup_epochs=5,
            weight_decay=0.05,
            clip_norm=5.0,
        ),
        label_smoothing=0.1,
        checkpoint=CheckpointConfig(every_steps=EPOCH),
        epochs=300,
        batch_size=1024,
        eval_batch_size=1024,
        eval_every_steps=EPOCH,
    )


def imagenet_pcpvt_small() -> ClassificationConfig:
    """Twins-PCPVT-S on ImageNet-1K; published top-1 81.2 (paper, table of ImageNet results).

    Command: `python -m train.main imagenet_pcpvt_small --data.dir DIR`. Not rerun by us.
    """
    return _imagenet("pcpvt_small", drop_path_rate=0.2)


def imagenet_pcpvt_base() -> ClassificationConfig:
    """Twins-PCPVT-B on ImageNet-1K; published top-1 82.7 (paper, table of ImageNet results).

    Command: `python -m train.main imagenet_pcpvt_base --data.dir DIR`. Not rerun by us.
    """
    return _imagenet("pcpvt_base", drop_path_rate=0.3)


def imagenet_pcpvt_large() -> ClassificationConfig:
    """Twins-PCPVT-L on ImageNet-1K; published top-1 83.1 (paper, table of ImageNet results).

    Command: `python -m train.main imagenet_pcpvt_large --data.dir DIR`. Not rerun by us.
    """
    return _imagenet("pcpvt_large", drop_path_rate=0.5)


def imagenet_svt_small() -> ClassificationConfig:
    """Twins-SVT-S on ImageNet-1K; published top-1 81.7 (paper, table of ImageNet results).

    Command: `python -m train.main imagenet_svt_small --data.dir DIR`. Not rerun by us.
    """
    return _imagenet("svt_small", drop_path_rate=0.2)


def imagenet_svt_base() -> ClassificationConfig:
    """Twins-SVT-B on ImageNet-1K; published top-1 83.2 (paper, table of ImageNet results).

    Command: `python -m train.main imagenet_svt_base --data.dir DIR`. Not rerun by us.
    """
    return _imagenet("svt_base", drop_path_rate=0.3)


def imagenet_svt_large() -> ClassificationConfig:
    """Twins-SVT-L on ImageNet-1K; published top-1 83.7 (paper, table of ImageNet results).

    Command: `python -m train.main imagenet_svt_large --data.dir DIR`. Not rerun by us.
    """
    return _imagenet("svt_large", drop_path_rate=0.5)
