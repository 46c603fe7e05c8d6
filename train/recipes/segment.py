"""Segmentation of a user's own images. The paper publishes no result for it: this is a starting point of ours."""

from ..config import CheckpointConfig, ModelConfig
from ..tasks.segmentation.config import SegmentationConfig, SegmentationDataConfig, SegmentationOptimConfig


def segment_folder() -> SegmentationConfig:
    """Twins-SVT-S with Semantic FPN on a folder of images and masks.

    Command: `python -m train.main segment_folder --data.dir DIR`, where DIR holds images/{train,val}/*,
    masks/{train,val}/*.png of class indices, 255 where ignored, and classes.json, the list of the classes' names. Add
    `--init CHECKPOINT` with a classifier's weights. On two CPU cores: `--model.name twins_svt_tiny --data.crop_size 256
    --data.shorter 256 --batch_size 8`. No figure is published.
    """
    return SegmentationConfig(
        workdir="runs/segment_folder",
        model=ModelConfig(name="twins_svt_small", drop_path_rate=0.1, window_padding="mask"),
        head="semantic_fpn",
        data=SegmentationDataConfig(source="folder", dir="data", eval_multiple=64),
        # Crops are padded with zeros, and fresh biases are zero: LayerNorms of zero vectors enlarge gradients by
        # 1 / sqrt(epsilon) each, and AdamW would remember the first step's for thousands of steps.
        optim=SegmentationOptimConfig(learning_rate=2e-4, power=0.9, warmup_steps=100, clip_norm=5.0),
        checkpoint=CheckpointConfig(every_steps=500),
        epochs=100,
        batch_size=16,
        eval_batch_size=8,
        eval_every_steps=500,
    )
