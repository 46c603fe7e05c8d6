"""Fine-tuning from ported weights. The paper publishes no result for it: these are starting points of ours."""

from ..config import CheckpointConfig, ModelConfig
from ..tasks.classification.config import (
    ClassificationConfig,
    ClassificationDataConfig,
    ClassificationOptimConfig,
    MixConfig,
)


def finetune_folder() -> ClassificationConfig:
    """Twins-SVT-S from a checkpoint onto the classes of an image folder, with layer-wise learning rates.

    Command: `python -m train.main finetune_folder --init CHECKPOINT --data.dir DIR`, where DIR holds train/CLASS/* and
    val/CLASS/*. A fresh head replaces the checkpoint's where the number of classes differs. No figure is published.
    """
    return ClassificationConfig(
        workdir="runs/finetune_folder",
        model=ModelConfig(name="twins_svt_small", drop_path_rate=0.1, dtype="bfloat16"),
        data=ClassificationDataConfig(source="folder", dir="data", image_size=224, rand_augment_layers=2, workers=4),
        mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0, erase_probability=0.25),
        optim=ClassificationOptimConfig(learning_rate=5e-4, min_learning_rate=1e-6, layer_decay=0.75),
        checkpoint=CheckpointConfig(every_steps=500),
        epochs=30,
        batch_size=128,
        eval_batch_size=128,
        eval_every_steps=500,
    )


def finetune_384() -> ClassificationConfig:
    """Twins-SVT-S at 384x384 from a checkpoint trained at 224x224, on ImageNet-1K.

    Command: `python -m train.main finetune_384 --init CHECKPOINT --data.dir DIR`, with imagenet2012 in DIR. The model
    has no tables of positions: its weights fit every image size. No figure is published.
    """
    return ClassificationConfig(
        workdir="runs/finetune_384",
        model=ModelConfig(name="twins_svt_small", drop_path_rate=0.2, dtype="bfloat16"),
        data=ClassificationDataConfig(
            source="imagenet2012", image_size=384, rand_augment_layers=2, eval_crop=1.0, workers=8
        ),
        mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0, erase_probability=0.25),
        optim=ClassificationOptimConfig(learning_rate=1e-5, min_learning_rate=1e-6, warmup_epochs=0, weight_decay=1e-8),
        checkpoint=CheckpointConfig(every_steps=2500),
        epochs=30,
        batch_size=512,
        eval_batch_size=512,
        eval_every_steps=2500,
    )
