"""Detection in a user's own images. The paper publishes no result for it: this is a starting point of ours."""

from ..config import CheckpointConfig, ModelConfig
from ..tasks.detection.config import DetectionConfig, DetectionDataConfig, DetectionOptimConfig


def detect_folder() -> DetectionConfig:
    """Twins-SVT-S with RetinaNet on a folder of images with annotations in COCO's format.

    Command: `python -m train.main detect_folder --data.dir DIR`, where DIR holds images/{train,val}/* and
    annotations/{train,val}.json. Add `--init CHECKPOINT` with a classifier's weights, and `--head mask_rcnn` where the
    annotations have masks. On two CPU cores: `--model.name twins_svt_tiny --data.shorter 256 --data.longer 352
    --batch_size 4`. No figure is published.
    """
    return DetectionConfig(
        workdir="runs/detect_folder",
        model=ModelConfig(name="twins_svt_small", drop_path_rate=0.1, window_padding="zero"),
        head="retinanet",
        # Objects beyond the last would be background, and people's images hold more than COCO's.
        data=DetectionDataConfig(source="folder", dir="data", max_boxes=400),
        # Images are padded with zeros, and fresh biases are zero. The LayerNorm of a zero vector multiplies gradients
        # by 1 / sqrt(epsilon). Unclipped, those of the first step would stay in AdamW's moments for thousands of steps.
        optim=DetectionOptimConfig(learning_rate=2e-4, warmup_steps=100, clip_norm=5.0),
        checkpoint=CheckpointConfig(every_steps=500),
        epochs=50,
        batch_size=8,
        eval_batch_size=8,
        eval_every_steps=500,
    )
