"""Twins-PCPVT and Twins-SVT vision transformers (arXiv 2104.13840) in JAX."""

from twins_jax import visualize
from twins_jax.backbone import FeatureInfo, TwinsBackbone
from twins_jax.classifier import TwinsClassifier
from twins_jax.config import TwinsConfig, TwinsOptions
from twins_jax.create import create_backbone, create_detector, create_model, create_segmenter, list_models
from twins_jax.detection.detector import Detections, TwinsDetector
from twins_jax.detection.mask_rcnn import TwinsMaskRCNN
from twins_jax.detection.preprocess import DetectionPreprocessing
from twins_jax.detection.retinanet import TwinsRetinaNet
from twins_jax.errors import InputError
from twins_jax.export import ExportError, export_model
from twins_jax.functional import (
    BatchStats,
    Params,
    get_batch_stats,
    get_params,
    merge_model,
    set_params,
    split_model,
)
from twins_jax.groups import layer_groups, param_mask, stages_below
from twins_jax.image_classifier import Answer, classify
from twins_jax.image_detector import Detection, detect
from twins_jax.image_segmenter import segment
from twins_jax.preprocess import Preprocessing, normalize, preprocess
from twins_jax.pretrained import (
    backbone_from_pretrained,
    detector_from_pretrained,
    from_pretrained,
    push_to_hub,
    save_pretrained,
    segmenter_from_pretrained,
)
from twins_jax.segmentation.preprocess import SegmentationPreprocessing
from twins_jax.segmentation.segmenter import TwinsSegmenter

__version__ = "0.2.0.dev0"

__all__ = [
    "Answer",
    "BatchStats",
    "Detection",
    "DetectionPreprocessing",
    "Detections",
    "ExportError",
    "FeatureInfo",
    "InputError",
    "Params",
    "Preprocessing",
    "SegmentationPreprocessing",
    "TwinsBackbone",
    "TwinsClassifier",
    "TwinsConfig",
    "TwinsDetector",
    "TwinsMaskRCNN",
    "TwinsOptions",
    "TwinsRetinaNet",
    "TwinsSegmenter",
    "__version__",
    "backbone_from_pretrained",
    "classify",
    "create_backbone",
    "create_detector",
    "create_model",
    "create_segmenter",
    "detect",
    "detector_from_pretrained",
    "export_model",
    "from_pretrained",
    "get_batch_stats",
    "get_params",
    "layer_groups",
    "list_models",
    "merge_model",
    "normalize",
    "param_mask",
    "preprocess",
    "push_to_hub",
    "save_pretrained",
    "segment",
    "segmenter_from_pretrained",
    "set_params",
    "split_model",
    "stages_below",
    "visualize",
]
