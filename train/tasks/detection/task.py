"""Object detection and instance segmentation as a task of the training system."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
from flax import nnx

import twins_jax
from twins_jax import TwinsMaskRCNN, TwinsRetinaNet
from twins_jax.detection.masks import mask_targets
from twins_jax.detection.preprocess import DetectionPreprocessing
from twins_jax.detection.rpn import proposals
from twins_jax.errors import require
from twins_jax.extra import check_installed
from twins_jax.paths import weights_source
from twins_jax.preprocess import DEFAULT, normalize

from ...data.padding import zero_padding
from ...data.pipeline import eval_batches, train_batches
from ...task import Batch, DatasetInfo, Split
from .config import DetectionConfig
from .losses import BOX_POSITIVES, RoIs, Truth, box_head_losses, mask_loss, retinanet_losses, rpn_losses, sample_rois
from .metrics import DetectionEvaluator, Kind
from .report import ReportEvaluator

PROPOSALS_PER_LEVEL, PROPOSALS = 2000, 1000
"""Of each level before suppression, and of an image after it, in training (upstream's `rpn_proposal`)."""
