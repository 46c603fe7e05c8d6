"""CIFAR-sized training: small images from an image folder."""

from ..config import CheckpointConfig, ModelConfig
from ..tasks.classification.config import ClassificationConfig, ClassificationDataConfig, ClassificationOptimConfig


def cifar10() -> ClassificationConfig:
    """twins_svt_tiny on CIFAR-10 stored as an image folder; the accuracy curve is in docs/results/cifar10.md.

    Command: `python -m train.main cifar10 --data.dir DIR`, where DIR holds train/CLASS/* and test/CLASS/*. Four epochs,
    which two CPU cores do in seven to eight minutes; for a better model give `--epochs 100 --model.drop_path_rate 0.1`.
    Nothing is published for it: the curve is ours.
    """
    return ClassificationConfig(
        workdir="runs/cifar10",
        model=ModelConfig(name="twins_svt_tiny"),
        data=ClassificationDataConfig(
            source="folder", dir="data", image_size=32, crop_scale=(0.5, 1.0), eval_crop=1.0, threads=2
        ),
        optim=ClassificationOptimConfig(learning_rate=4e-3, warmup_epochs=0.5),
        checkpoint=CheckpointConfig(every_steps=200),
        epochs=4,
        batch_size=128,
        eval_batch_size=256,
        eval_every_steps=200,
    )
